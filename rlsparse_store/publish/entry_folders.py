"""The folders that entries of one run take in another: no entry replaces another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from rlsparse_store.delta.run_files import IndexRow

__all__ = ["choose_folders"]


def choose_folders(
    rows: Iterable[IndexRow], held: Sequence[IndexRow], taken: Collection[str] = ()
) -> dict[str, str]:
    """The folder in another run of each entry, by its own folder.

    An entry is its content. An entry that the other run holds, with this name and content, has its
    folder there. Any other entry keeps its folder, or gets the next number if the folder is taken:
    so does a second checkpoint of a name when it is encoded.

    Args:
        rows: The entries.
        held: The entries of the other run.
        taken: Other names that are taken there.
    """
    rows = list(rows)
    content = {row.folder: (row.name, row.tuned) for row in held}
    chosen = {r.folder: r.folder for r in rows if content.get(r.folder) == (r.name, r.tuned)}
    elsewhere = {content[f]: f for f in reversed(content) if f not in chosen}
    used = {*content, *taken}
    for row in rows:
        if row.folder not in chosen:
            held_in = elsewhere.pop((row.name, row.tuned), None)
            chosen[row.folder] = held_in or _unused(row, used)
            used.add(chosen[row.folder])
    return chosen


def _unused(row: IndexRow, used: Collection[str]) -> str:
    stem = row.name if row.folder.startswith(row.name) else row.folder
    folder, number = row.folder, 1
    while folder in used:
        number += 1
        folder = f"{stem}.{number}"
    return folder
