"""Pulling entries of a run from the Hub into a local run, one after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.listed_run import listed_pins, listed_rows, within
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_files import (
    INDEX_NAME,
    LARGEST_NOTE,
    NOTE_NAME,
    delta_names,
    parse_note,
    private_folder,
    read_small,
)
from rlsparse_store.delta.run_folder import RunFolder
from rlsparse_store.delta.verify import verify_delta
from rlsparse_store.errors import BaseMismatchError, NotFoundError, OutputError, RunError
from rlsparse_store.files.copy import copy_files
from rlsparse_store.files.output import output_errors, output_folder, write_new
from rlsparse_store.files.side_files import SIDE_FILES
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.selection import FileSelection
from rlsparse_store.hub.snapshots import cached_snapshot, fetch_listed, fetch_snapshot
from rlsparse_store.publish.card import CARD, PICTURE
from rlsparse_store.publish.entry_folders import choose_folders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.delta.run_files import EntryNote, IndexRow
    from rlsparse_store.delta.run_place import RunWriter
    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import HubFile, Listing
    from rlsparse_store.hub.repo_id import RepoId
    from rlsparse_store.hub.snapshots import Snapshot

__all__ = ["CachedRun", "ListedRun", "PulledEntries", "delta_files", "pull_entries"]


def delta_files(prefix: str) -> FileSelection:
    """The files of the delta under a prefix, with the small files and the card beside it."""
    beside = (f"{DELTA_FOLDER}/*", f"*/{DELTA_FOLDER}/*", CARD, f"*/{CARD}", PICTURE, *SIDE_FILES)
    return FileSelection("delta", [f"{prefix}{pattern}" for pattern in beside])


def _root_files(run: str) -> FileSelection:
    """The files of a run outside its entries, without its index."""
    beside = (CARD, PICTURE, *SIDE_FILES)
    prefix = within(run, "")
    return FileSelection(
        "delta",
        [f"{prefix}{pattern}" for pattern in beside],
        [f"{prefix}*/*", f"{prefix}{INDEX_NAME}"],
    )


class ListedRun:
    """A run on the Hub.

    Args:
        listing: The repository.
        run: Folder of the run; empty for the repository itself.
        access: How to reach the Hub.
    """

    def __init__(self, listing: Listing, run: str, access: HubAccess) -> None:
        self.name = within(str(listing.repo), run).rstrip("/")
        self.run = run
        self._listing = listing
        self._access = access
        self._folders: dict[str, dict[str, HubFile]] = {}
        prefix = within(run, "")
        for path, file in listing.files.items():
            folder = path.removeprefix(prefix).partition("/")[0]
            if path.startswith(prefix):
                self._folders.setdefault(folder, {})[path] = file

    def rows(self) -> list[IndexRow]:
        """The entries, in order."""
        return listed_rows(self._listing, self.run, self._access)

    def pins(self) -> set[str]:
        """The digests that are pinned."""
        return listed_pins(self._listing, self.run)

    def fetch(self, selection: FileSelection, folder: str | None = None) -> Snapshot:
        """Download files, of a folder in the run if one is given."""
        listing = self._listing
        if folder is not None:
            # Matching every pattern with all files of the run would take longer than downloading.
            listing = replace(listing, files=self._folders[folder])
        return fetch_listed(listing, selection, self._access)


class CachedRun:
    """The entries of a run that the cache has.

    Args:
        repo: The repository and revision.
        run: Folder of the run; empty for the repository itself.
        access: How to reach the Hub.
    """

    def __init__(self, repo: RepoId, run: str, access: HubAccess) -> None:
        self.name = within(str(repo), run).rstrip("/")
        self.run = run
        self._repo = repo
        self._access = access
        snapshot = cached_snapshot(repo, "delta", access)
        self._place = RunFolder(Path() if snapshot is None else snapshot.path / run)

    def rows(self) -> list[IndexRow]:
        """The entries, in order. The index may name others, which were not downloaded."""
        return [self._place.read_row(folder) for folder in delta_names(self._place.root)]

    def pins(self) -> set[str]:
        """None: no download fetches pins."""
        return set()

    def fetch(self, selection: FileSelection, folder: str | None = None) -> Snapshot:
        """Find files, and compare them with their content ids."""
        del folder
        return fetch_snapshot(self._repo, selection, self._access)


class PulledEntries(NamedTuple):
    """What was pulled of a run.

    Attributes:
        new: Folders of the entries that were written, in the local run.
        held: Folders of those that the local run had.
        files: Files written.
        nbytes: Their bytes.
    """

    new: list[str]
    held: list[str]
    files: int
    nbytes: int


def pull_entries(
    source: ListedRun | CachedRun, rows: Sequence[IndexRow], out: Path
) -> PulledEntries:
    """Write entries into a local run. Each appears when it is complete and verified.

    Args:
        source: The run on the Hub.
        rows: The entries to pull.
        out: Folder of the local run, which is created if there is none.

    Raises:
        OutputError: The folder is not a run, or cannot be written.
        BaseMismatchError: The local run has another base.
        RunLockedError: Another process is writing the local run.
        RunError: An index or a note is damaged, or disagrees with its delta.
        FormatError: A delta is damaged.
        HubError: The Hub failed.
    """
    _require_run(out)
    place = place_of(out)
    pinned = source.pins()
    new, files, nbytes = [], 0, 0
    with output_errors(out), place.write() as writer:
        held = list(writer.rows.values())
        _require_base(out, rows, held)
        folders = choose_folders(rows, held)
        present = {row.folder for row in held}
        missing = [row for row in rows if folders[row.folder] not in present]
        for row in missing:
            added = _pull(source, row, folders[row.folder], writer)
            new.append(added.folder)
            files += added.files
            nbytes += added.nbytes
        writer.prune([], [], [row for row in missing if row.tuned in pinned], [])
    more = _pull_root_files(source, out)
    return PulledEntries(
        new, [f for f in folders.values() if f in present], files + more[0], nbytes + more[1]
    )


class _Added(NamedTuple):
    """An entry that was written: its folder, the number of its files, and their bytes."""

    folder: str
    files: int
    nbytes: int


def _require_run(out: Path) -> None:
    """Require that a folder is a run, or empty."""
    if (out / DELTA_FOLDER).is_dir():
        msg = "is a delta, not a run; choose another folder"
        raise OutputError(msg, file=out)
    if out.exists() and not out.is_dir():
        msg = "exists and is not a folder; choose another place"
        raise OutputError(msg, file=out)
    is_run = private_folder(out).is_dir() or bool(delta_names(out))
    if out.is_dir() and not is_run and any(out.iterdir()):
        msg = "exists and is not a run; choose another folder"
        raise OutputError(msg, file=out)


def _require_base(out: Path, rows: Sequence[IndexRow], held: Sequence[IndexRow]) -> None:
    if len({row.base for row in [*rows, *held]}) > 1:
        msg = "holds deltas of another base: choose another folder"
        raise BaseMismatchError(msg, file=out)


def _pull(source: ListedRun | CachedRun, row: IndexRow, folder: str, writer: RunWriter) -> _Added:
    """Write one entry."""
    prefix = within(source.run, f"{row.folder}/")
    with writer.new_entry(folder) as target:
        with output_folder(target) as temporary:
            snapshot = source.fetch(delta_files(prefix), row.folder)
            names = [n.removeprefix(prefix) for n in snapshot.names if n.startswith(prefix)]
            nbytes = copy_files(snapshot.path / prefix, names, temporary)
            verify_delta(temporary)
            note, report = _entry(temporary, row, source.name)
            writer.require_held()
        writer.add(target, note, report)
        return _Added(target.name, len(names), nbytes)


def _entry(delta: Path, row: IndexRow, place: str) -> tuple[EntryNote, DeltaReport]:
    """The note and report of a pulled entry, which must be the one that was listed."""
    report = inspect_delta(delta)
    if report.tuned_digest != row.tuned:
        msg = (
            f"says of the entry {printable(row.folder)} what its delta does not; push the run again"
        )
        raise RunError(msg, file=printable(f"{place}/{INDEX_NAME}"))
    path = delta / DELTA_FOLDER / NOTE_NAME
    return parse_note(read_small(path, LARGEST_NOTE), path, row.folder, row.tuned), report


def _pull_root_files(source: ListedRun | CachedRun, out: Path) -> tuple[int, int]:
    """Write the card, the license and other small files of the run that the local one lacks."""
    try:
        snapshot = source.fetch(_root_files(source.run))
    except NotFoundError:
        return 0, 0
    prefix, nbytes = within(source.run, ""), 0
    missing = [name for name in snapshot.names if not (out / name.removeprefix(prefix)).exists()]
    for name in missing:
        data = (snapshot.path / name).read_bytes()
        write_new(out / name.removeprefix(prefix), data)
        nbytes += len(data)
    return len(missing), nbytes
