"""A run in a bucket: objects that never change, and an index that is replaced by compare-and-swap.

The index, ``run.json``, is the truth of what is listed. A writer replaces the version that it read,
or reads again: so several processes may write, and none loses what another one listed.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import xxhash

from rlsparse_store.buckets.calls import run_all
from rlsparse_store.buckets.errors import too_late
from rlsparse_store.buckets.local_folder import local_folder, upload_folder
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.buckets.upload import LAST_NAMES, delta_digest, upload_delta
from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.run_files import (
    INDEX_NAME,
    LARGEST_NOTE,
    NOTE_NAME,
    RunContents,
    natural_order,
    parse_note,
    pin_text,
    row_of,
)
from rlsparse_store.delta.run_objects import (
    ABANDONED,
    PINS,
    UNLISTED,
    Index,
    folder_times,
    get_small,
    has_object,
    read_marks,
    read_pins,
    swap_index,
    whole_folders,
)
from rlsparse_store.delta.run_place import (
    RepairReport,
    RunPlace,
    RunWriter,
    WatcherState,
    not_a_run,
    require_base,
)
from rlsparse_store.errors import (
    BaseMismatchError,
    OutputError,
    RunError,
)
from rlsparse_store.files.writer_lock import WriterLock
from rlsparse_store.format.file_names import DELTA_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.delta.run_files import EntryNote, IndexRow

__all__ = ["RunBucket"]

_CLOCK: Final = ".run/clock"
_SEEN: Final = ".run/watch/seen.json"

_DAY: Final = 86_400.0
"""An upload without a new object for this long was killed; a mark of nothing is deleted then."""

_HOUR: Final = 3600.0
"""Seconds between marking what a killed writer uploaded and removing it."""

_LONGEST_STEM: Final = 160
"""Characters of an entry's name in its folder."""


class RunBucket(RunPlace):
    """A run in a bucket.

    Args:
        root: The run.
    """

    root: BucketUrl

    def __init__(self, root: BucketUrl) -> None:
        self.root = root
        self._store = ObjectStore(root)
        self._written: dict[str, float] = {}

    def entry(self, folder: str) -> str:
        """The URL of an entry."""
        return str(self.root / folder)

    def is_delta(self) -> bool:
        """Whether this is a delta, as :class:`RunPlace` says."""
        return any(stat.key in LAST_NAMES for stat in self._store.list(f"{DELTA_FOLDER}/"))

    def is_run(self) -> bool:
        """Whether this is a run: it has an index."""
        return has_object(self._store, INDEX_NAME)

    def is_inside(self, folder: Path) -> bool:  # noqa: ARG002 - of a local run
        """Whether this is a local folder or inside it: no."""
        return False

    def read(self) -> RunContents:
        """What the index lists, as :class:`RunPlace` says."""
        return Index.read(self._store).contents()

    def find(self) -> RunContents | None:
        """What the index lists, as :class:`RunPlace` says."""
        contents = self.read()
        return contents if contents.rows else None

    def read_row(self, folder: str) -> IndexRow:
        """The row of an entry, as :class:`RunPlace` says."""
        report = inspect_delta(self.entry(folder))
        key = f"{folder}/{DELTA_FOLDER}/{NOTE_NAME}"
        text, _ = get_small(self._store, key, LARGEST_NOTE)
        note = parse_note(text, self.root / key, folder, report.tuned_digest)
        return row_of(folder, note, report)

    def last_written(self, folder: str) -> float:
        """When an entry was written, as :class:`RunPlace` says, by the clock of the store."""
        if folder not in self._written:
            # One listing for all of them: entries do not change.
            self._written = folder_times(self._store)
        return self._written.get(folder, 0.0)

    def has_removable(self) -> bool:
        """Whether pruning finds something, as :class:`RunPlace` says."""
        return bool(self.read().rows or read_marks(self._store, UNLISTED))

    @contextmanager
    def write(self) -> Iterator[RunWriter]:
        """A writer, as :class:`RunPlace` says, of several."""
        yield _BucketWriter(self.root, self._store, self.read())

    @contextmanager
    def watch(self) -> Iterator[WatcherState]:
        """The watcher's state, as :class:`RunPlace` says, with a lock on this machine."""
        # A URL has slashes.
        name = xxhash.xxh3_128_hexdigest(str(self.root).encode())
        with WriterLock(local_folder("watch") / name, self.root):
            yield _StateObject(self._store)

    def repair(self) -> RepairReport:
        """Make the index again, as :class:`RunPlace` says."""
        found: list[RepairReport] = []

        def rebuilt(index: Index) -> RunContents:
            index_error, indexed = None, {}
            try:
                indexed = {row.folder: row for row in index.contents().rows}
            except RunError as error:
                index_error = error.message
            unlisted = _marked_folders(self._store)
            folders = sorted(whole_folders(self._store) - unlisted, key=natural_order)
            if not folders:
                raise not_a_run(self.root)
            rows = run_all(
                [partial(self.read_row, folder) for folder in folders],
                # Each request has a deadline of its own.
                math.inf,
                lambda: too_late(str(self.root)),
            )
            by_folder = {row.folder: row for row in rows}
            found.append(RepairReport.of(indexed, index_error, by_folder, unlisted))
            return RunContents(rows, read_pins(self._store))

        swap_index(self._store, rebuilt)
        return found[-1]


class _BucketWriter(RunWriter):
    """Writes a run beside others: what it changes is changed in the newest version of the index.

    A marked entry that the index still names is one that is being pruned: it is none of the rows.

    Args:
        root: The run.
        store: The store, at the run.
        contents: What the run holds.
    """

    def __init__(self, root: BucketUrl, store: ObjectStore, contents: RunContents) -> None:
        super().__init__(root, contents)
        self._store = store
        self._marked = set(read_marks(store, UNLISTED)) if contents.rows else set()
        self._take(contents)

    def _take(self, contents: RunContents) -> None:
        """Take a version of the index for the newest one."""
        self.pins = contents.pins
        self.rows = {r.folder: r for r in contents.rows if r.folder not in self._marked}

    def require_held(self) -> None:
        """Require nothing: others may write, too."""

    @contextmanager
    def new_entry(self, name: str) -> Iterator[Path]:  # noqa: ARG002 - of a local run
        """A local folder: the entry's own place follows from its bytes."""
        with upload_folder() as folder:
            yield folder / "delta"

    def add(self, delta: Path, note: EntryNote, report: DeltaReport) -> IndexRow | None:
        """Upload a delta and list it, as :class:`RunWriter` says."""
        folder = self._folder_of(note.name, delta_digest(delta))
        row = row_of(folder, note, report)
        upload_delta(self._store, delta, f"{folder}/")

        def with_row(index: Index) -> RunContents:
            contents = index.contents()
            self._take(contents)
            require_base(self.root, note.name, row.base, contents.rows)
            if any(has_object(self._store, kind + folder) for kind in (UNLISTED, ABANDONED)):
                msg = "was pruned while it was written; run the same command again"
                raise OutputError(msg, file=self.root / folder)
            held = self.current(note.name)
            if held is not None and held.tuned == row.tuned:
                return contents
            return RunContents([*contents.rows, row], contents.pins)

        try:
            contents = swap_index(self._store, with_row)
        except BaseMismatchError:
            self._mark(folder)
            raise
        self._take(contents)
        if folder not in self.rows:
            self._mark(folder)
        return self.rows.get(folder)

    def _folder_of(self, name: str, digest: str) -> str:
        """The folder of another entry of a name: after those that are there, in natural order."""
        stem = re.sub(r"[^A-Za-z0-9._-]|\A\.", "_", name)[:_LONGEST_STEM]
        numbered = re.compile(rf"{re.escape(stem)}(?:\.([0-9]{{1,9}})(?:-[0-9a-f]{{16}})?)?")
        taken = _marked_folders(self._store) | self.rows.keys()
        found = (numbered.fullmatch(folder) for folder in taken)
        number = max((int(match[1] or 1) for match in found if match is not None), default=0)
        return f"{stem}.{number + 1}-{digest}"

    def prune(
        self,
        unlisted: Sequence[IndexRow],
        removed: Sequence[str],
        pinned: Sequence[IndexRow],
        unpinned: Sequence[IndexRow],
    ) -> list[IndexRow]:
        """Unlist and remove entries, as :class:`RunWriter` says."""
        self._store.delete([PINS + row.tuned for row in unpinned])
        for row in pinned:
            self._store.put(PINS + row.tuned, pin_text(row))
        for row in unlisted:
            self._mark(row.folder)

        def without_marked(index: Index) -> RunContents:
            # After the index: a writer changes a mark or a pin first, and then the index.
            marks, pins = read_marks(self._store, UNLISTED), read_pins(self._store)
            rows = index.contents().rows
            pinned_since = [r.folder for r in rows if r.folder in marks and r.tuned in pins]
            self._store.delete([UNLISTED + folder for folder in pinned_since])
            self._marked = marks.keys() - set(pinned_since)
            return RunContents([r for r in rows if r.folder not in self._marked], pins)

        self._take(swap_index(self._store, without_marked))
        for folder in removed:
            if folder not in self.rows:
                self._sweep(folder)
        self._clean()
        return [row for row in unlisted if row.folder not in self.rows]

    def due(self, grace_seconds: float) -> list[str]:
        """Folders whose grace period is over, by the clock of the store."""
        marks = read_marks(self._store, UNLISTED)
        if not marks:
            return []
        now, there = self._now(), folder_times(self._store)
        due = [f for f, marked in marks.items() if f in there and now - marked >= grace_seconds]
        return sorted(due, key=natural_order)

    def _mark(self, folder: str) -> None:
        self._store.put(UNLISTED + folder, b"")

    def _now(self) -> float:
        self._store.put(_CLOCK, b"")
        return self._store.head(_CLOCK).modified

    def _sweep(self, folder: str) -> None:
        """Remove a marked folder: first what makes it a delta, then the rest. The mark stays."""
        keys = [stat.key for stat in self._store.list(f"{folder}/")]
        first = [f"{folder}/{name}" for name in LAST_NAMES]
        self._store.delete([key for key in keys if key in first])
        self._store.delete([key for key in keys if key not in first])

    def _clean(self) -> None:
        """Remove what killed writers uploaded and did not list, and the marks of what is gone.

        A mark outlives its folder by a day. Otherwise a writer could fill the folder again, which
        another pruning has begun to remove.
        """
        there = folder_times(self._store)
        unlisted, abandoned = (read_marks(self._store, kind) for kind in (UNLISTED, ABANDONED))
        left = there.keys() - self.rows.keys() - unlisted.keys()
        if not (left or unlisted or abandoned):
            return
        now = self._now()
        for folder in sorted(left):
            if folder not in abandoned:
                if now - there[folder] > _DAY:
                    self._store.put(ABANDONED + folder, b"")
            elif now - abandoned[folder] > _HOUR:
                self._sweep(folder)
        ended = [
            kind + folder
            for kind, marks in ((UNLISTED, unlisted), (ABANDONED, abandoned))
            for folder, marked in marks.items()
            if folder not in there and now - marked > _DAY
        ]
        # Its writer looked for the mark, and listed the entry just after this was written.
        listed = [ABANDONED + folder for folder in abandoned.keys() & self.rows.keys()]
        self._store.delete([*ended, *listed])


def _marked_folders(store: ObjectStore) -> set[str]:
    """The folders that are no entries, and that no entry gets."""
    return {*read_marks(store, UNLISTED), *read_marks(store, ABANDONED)}


class _StateObject(WatcherState):
    """What a watcher keeps, in an object.

    Args:
        store: The store, at the run.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self, largest: int) -> bytes | None:
        """What was kept, as :class:`WatcherState` says."""
        try:
            return get_small(self._store, _SEEN, largest)[0]
        except RunError:
            return None

    def write(self, text: bytes) -> None:
        """Keep this instead, as :class:`WatcherState` says."""
        self._store.put(_SEEN, text)
