"""The layout of a repository: no delta inside the folder of another.

A folder with a delta is read as that delta, whatever its subfolders hold: with a delta at its root,
the repository of a run would no longer be a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.resolve import delta_folders
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.errors import OutputError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlsparse_store.hub.listing import Listing
    from rlsparse_store.hub.repo_id import RepoId

__all__ = ["require_apart"]

_NAMED: Final = 3
"""Deltas of a run that an error message lists."""


def require_apart(repo: RepoId, new: Iterable[str], there: Listing) -> None:
    """Check that no new delta is inside the folder of another, or holds one.

    Args:
        repo: The repository, for errors.
        new: Folders of the deltas to publish; an empty string for the repository itself.
        there: The repository's present content.

    Raises:
        OutputError: One is.
    """
    found = delta_folders(there)
    for place in new:
        if inner := [folder for folder in found if _lies_within(folder, place)]:
            msg = (
                f"holds a run, with deltas in {_listed(inner)}: choose a folder within it "
                "(--subfolder), or another repository"
            )
            raise OutputError(msg, file=printable(f"{repo}/{place}".rstrip("/")))
        if outer := [folder for folder in found if _lies_within(place, folder)]:
            elsewhere = "a folder beside it (--subfolder) or another" if outer[0] else "another"
            msg = (
                f"holds a single delta, which cannot contain others: choose {elsewhere} repository"
            )
            raise OutputError(msg, file=printable(f"{repo}/{outer[0]}".rstrip("/")))


def _lies_within(folder: str, other: str) -> bool:
    return folder != other and (not other or folder.startswith(f"{other}/"))


def _listed(folders: list[str]) -> str:
    """The first names in natural order, and the number of others."""
    ordered = sorted(folders, key=natural_order)
    more = f" and {len(ordered) - _NAMED:,} more" if len(ordered) > _NAMED else ""
    return printable(", ".join(ordered[:_NAMED])) + more
