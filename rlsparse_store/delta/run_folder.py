"""A run in a local folder: one writer at a time, entries first, the index last."""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.run_files import (
    INDEX_NAME,
    LARGEST_INDEX,
    LARGEST_NOTE,
    NOTE_NAME,
    PINS_PATH,
    RunContents,
    delta_names,
    index_text,
    is_delta,
    is_digest,
    is_folder_name,
    marks_folder,
    names_in,
    natural_order,
    parse_index,
    parse_note,
    pin_text,
    private_folder,
    read_small,
    row_of,
    unlisted_names,
)
from rlsparse_store.delta.run_place import (
    RepairReport,
    RunPlace,
    RunWriter,
    WatcherState,
    not_a_run,
)
from rlsparse_store.errors import RunError, RunLockedError
from rlsparse_store.files.output import (
    output_errors,
    remove_stale,
    replace_file,
    require_path,
)
from rlsparse_store.files.rename import flush_folder, make_folder
from rlsparse_store.files.writer_lock import WriterLock, file_system_time
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.delta.run_files import EntryNote, IndexRow

__all__ = ["RunFolder"]


class RunFolder(RunPlace):
    """A run in a local folder. Its entries are the truth, and its index saves reading them.

    Args:
        root: The folder.
    """

    root: Path

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, folder: str) -> Path:
        """The folder of an entry."""
        return self.root / folder

    def is_delta(self) -> bool:
        """Whether this is a delta, as :class:`RunPlace` says."""
        return is_delta(self.root)

    def is_run(self) -> bool:
        """Whether this is a run, as :class:`RunPlace` says."""
        return (
            not self.is_delta() and self.root.is_dir() and any(map(is_delta, self.root.iterdir()))
        )

    def is_inside(self, folder: Path) -> bool:
        """Whether this is a folder or inside it, as :class:`RunPlace` says."""
        outer, inner = folder.resolve(), self.root.resolve()
        return inner == outer or outer in inner.parents

    def read(self) -> RunContents:
        """What the run holds: by the index, and what this lacks by the entries themselves."""
        return RunContents(self._list_entries(), self.pins())

    def find(self) -> RunContents | None:
        """What the run holds, as :class:`RunPlace` says."""
        contents = self.read()
        return contents if contents.rows and not self.is_delta() else None

    def _list_entries(self) -> list[IndexRow]:
        if not self.root.is_dir():
            return []
        rows, folders = self._read_index(), delta_names(self.root)
        if not rows.keys() <= set(folders):
            # A writer may have removed entries in between; it published another index before that.
            rows, folders = self._read_index(), delta_names(self.root)
        unlisted = unlisted_names(self.root)
        gone = sorted(rows.keys() - set(folders) - unlisted)
        if gone:
            msg = (
                f"names {printable(gone[0])}, whose folder is gone; restore it, or run rlsparse "
                "runs repair"
            )
            raise RunError(msg, file=self.root / INDEX_NAME)
        return [rows.get(folder) or self.read_row(folder) for folder in folders]

    def read_row(self, folder: str) -> IndexRow:
        """The row of an entry, as :class:`RunPlace` says."""
        report = inspect_delta(self.root / folder)
        path = self.root / folder / DELTA_FOLDER / NOTE_NAME
        text = read_small(path, LARGEST_NOTE)
        return row_of(folder, parse_note(text, path, folder, report.tuned_digest), report)

    def pins(self) -> set[str]:
        """The tuned digests that are pinned."""
        return {name for name in names_in(_pins_folder(self.root)) if is_digest(name)}

    def last_written(self, folder: str) -> float:
        """When an entry was written, as :class:`RunPlace` says, by the newest of its files."""
        files = (self.root / folder / DELTA_FOLDER).glob("*.safetensors")
        return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)

    def has_removable(self) -> bool:
        """Whether pruning finds something, as :class:`RunPlace` says."""
        return bool(delta_names(self.root) or unlisted_names(self.root))

    @contextmanager
    def write(self) -> Iterator[RunWriter]:
        """The writer, as :class:`RunPlace` says. It holds the run's lock."""
        require_path(self.root)
        with WriterLock(private_folder(self.root), self.root) as lock:
            # What killed writers were writing.
            with output_errors(self.root):
                for folder in (self.root, marks_folder(self.root), _pins_folder(self.root)):
                    remove_stale(folder)
            # A killed writer may have left an entry without a row: this finds it.
            writer = _FolderWriter(self.root, lock, self.read())
            yield writer
            writer.publish_missing(self._read_index())

    @contextmanager
    def watch(self) -> Iterator[WatcherState]:
        """The watcher's state, as :class:`RunPlace` says, with a lock of its own."""
        require_path(self.root)
        folder = private_folder(self.root) / "watch"
        with WriterLock(folder, self.root):
            if delta_names(self.root):
                # Finishes what a killed writer began, unless another one does.
                with suppress(RunLockedError), self.write():
                    pass
            yield _StateFile(folder / "seen.json")

    def repair(self) -> RepairReport:
        """Make the index again, as :class:`RunPlace` says."""
        if not delta_names(self.root):
            raise not_a_run(self.root)
        with WriterLock(private_folder(self.root), self.root) as lock:
            index_error, indexed = None, {}
            try:
                indexed = self._read_index()
            except RunError as error:
                index_error = error.message
            rows = {folder: self.read_row(folder) for folder in delta_names(self.root)}
            lock.require_held()
            _write_index(self.root, rows.values())
            return RepairReport.of(indexed, index_error, rows, unlisted_names(self.root))

    def _read_index(self) -> dict[str, IndexRow]:
        path = self.root / INDEX_NAME
        contents = parse_index(read_small(path, LARGEST_INDEX), path)
        return {row.folder: row for row in contents.rows}


class _FolderWriter(RunWriter):
    """Writes a run while it is locked.

    Args:
        root: Folder of the run.
        lock: Its lock, held.
        contents: What it holds.
    """

    root: Path

    def __init__(self, root: Path, lock: WriterLock, contents: RunContents) -> None:
        super().__init__(root, contents)
        self._lock = lock

    def require_held(self) -> None:
        """Require that this is the writer still, as :class:`RunWriter` says."""
        self._lock.require_held()

    @contextmanager
    def new_entry(self, name: str) -> Iterator[Path]:
        """The entry's own folder: the name, with a number if it is taken."""
        folder, number = name, 1
        while (self.root / folder).exists() or (marks_folder(self.root) / folder).exists():
            number += 1
            folder = f"{name}.{number}"
        yield self.root / folder

    def add(self, delta: Path, note: EntryNote, report: DeltaReport) -> IndexRow:
        """List an entry whose folder is in place, as :class:`RunWriter` says."""
        row = row_of(delta.name, note, report)
        self.rows[row.folder] = row
        self._publish()
        return row

    def prune(
        self,
        unlisted: Sequence[IndexRow],
        removed: Sequence[str],
        pinned: Sequence[IndexRow],
        unpinned: Sequence[IndexRow],
    ) -> list[IndexRow]:
        """Unlist and remove entries, as :class:`RunWriter` says."""
        for row in unpinned:
            _remove_pin(self.root, row.tuned)
        for row in pinned:
            _write_pin(self.root, row)
        self._mark(unlisted)
        if unlisted or removed:
            # Also where a killed writer marked folders that the index still names.
            self._publish()
        self._sweep(removed)
        return list(unlisted)

    def due(self, grace_seconds: float) -> list[str]:
        """Folders whose grace period is over, by the clock of the file system."""
        folder = marks_folder(self.root)
        marks = {name: folder / name for name in names_in(folder) if is_folder_name(name)}
        with output_errors(folder):
            now = file_system_time(private_folder(self.root))
            due = [n for n, mark in marks.items() if now - mark.stat().st_mtime >= grace_seconds]
        return sorted(due, key=natural_order)

    def _mark(self, rows: Sequence[IndexRow]) -> None:
        """Mark entries as unlisted, and leave them out of the next index."""
        if not rows:
            return
        marks = marks_folder(self.root)
        with output_errors(marks):
            make_folder(marks)
        self.require_held()
        for row in rows:
            replace_file(marks / row.folder, b"")
            del self.rows[row.folder]

    def publish_missing(self, indexed: dict[str, IndexRow]) -> None:
        """Publish the index if it is behind the entries, as a killed writer leaves it."""
        if indexed != self.rows:
            self._publish()

    def _publish(self) -> None:
        self.require_held()
        _write_index(self.root, self.rows.values())

    def _sweep(self, folders: Sequence[str]) -> None:
        """Remove unlisted folders: away from their place first, their files, then the marks."""
        swept = private_folder(self.root) / "swept"
        with output_errors(self.root):
            if folders:
                swept.mkdir(exist_ok=True)
            # What a kill left, or a power cut that took the mark.
            for left in swept.iterdir() if swept.is_dir() else ():
                shutil.rmtree(left)
            for name in folders:
                place = self.root / name
                if place.is_symlink():
                    # What it leads to belongs to someone else.
                    place.unlink()
                elif place.exists():
                    place.rename(swept / name)
                    flush_folder(self.root)
                    shutil.rmtree(swept / name)
                (marks_folder(self.root) / name).unlink()


class _StateFile(WatcherState):
    """What a watcher keeps, in a file.

    Args:
        path: The file. Its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, largest: int) -> bytes | None:
        """What was kept, as :class:`WatcherState` says."""
        try:
            with self._path.open("rb") as file:
                return file.read(largest)
        except FileNotFoundError:
            return None

    def write(self, text: bytes) -> None:
        """Keep this instead, as :class:`WatcherState` says."""
        replace_file(self._path, text)


def _write_index(root: Path, rows: Iterable[IndexRow]) -> None:
    replace_file(root / INDEX_NAME, index_text(rows))


def _pins_folder(root: Path) -> Path:
    return root / PINS_PATH


def _write_pin(root: Path, note: EntryNote) -> None:
    folder = _pins_folder(root)
    with output_errors(folder):
        make_folder(folder)
    replace_file(folder / note.tuned, pin_text(note))


def _remove_pin(root: Path, tuned: str) -> None:
    with output_errors(root):
        (_pins_folder(root) / tuned).unlink(missing_ok=True)
