"""The place of a run: what reading and writing a run takes, wherever it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.errors import BaseMismatchError, NotFoundError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.delta.run_files import EntryNote, IndexRow, RunContents

__all__ = ["RepairReport", "RunPlace", "RunWriter", "WatcherState", "not_a_run", "require_base"]


class RunPlace(ABC):
    """Where a run is kept.

    Attributes:
        root: The run itself.
    """

    root: Path | BucketUrl

    @abstractmethod
    def entry(self, folder: str) -> Path | str:
        """The path or the URL of an entry, for functions that take a delta."""

    @abstractmethod
    def is_delta(self) -> bool:
        """Whether this is a delta, and so no run."""

    @abstractmethod
    def is_run(self) -> bool:
        """Whether this holds deltas and is not itself one."""

    @abstractmethod
    def is_inside(self, folder: Path) -> bool:
        """Whether this is a local folder or inside it."""

    @abstractmethod
    def read(self) -> RunContents:
        """What the run holds; nothing if there is no run.

        Raises:
            RunError: The index is damaged, or names an entry that is gone.
            FormatError: A delta that the index lacks is damaged.
        """

    @abstractmethod
    def find(self) -> RunContents | None:
        """What the run holds, or ``None`` if this is no run.

        Raises:
            RunError: As for :meth:`read`.
            FormatError: As for :meth:`read`.
        """

    @abstractmethod
    def read_row(self, folder: str) -> IndexRow:
        """The row of an entry, by the entry itself.

        Raises:
            RunError: Its note is damaged.
            FormatError: Its delta is damaged.
        """

    @abstractmethod
    def last_written(self, folder: str) -> float:
        """When an entry was written, in seconds since the epoch; 0 if it is gone."""

    @abstractmethod
    def has_removable(self) -> bool:
        """Whether pruning finds something: entries, or folders that were unlisted."""

    @abstractmethod
    def write(self) -> AbstractContextManager[RunWriter]:
        """The writer of the run, for the ``with`` statement. Creates the run if there is none.

        Raises:
            RunLockedError: Another process is writing, where only one may.
            RunError: The index is damaged, or names an entry that is gone.
        """

    @abstractmethod
    def watch(self) -> AbstractContextManager[WatcherState]:
        """The state of the run's watcher, for the ``with`` statement.

        Raises:
            RunLockedError: Another process is watching for this run.
        """

    @abstractmethod
    def repair(self) -> RepairReport:
        """Make the index again from the entries. Removes nothing.

        Raises:
            NotFoundError: It holds no deltas.
            RunLockedError: Another process is writing, where only one may.
            RunError: An entry's note is damaged.
            FormatError: A delta is damaged.
        """


class RunWriter(ABC):
    """Adds entries to a run and removes them.

    Args:
        root: The run.
        contents: What it holds.

    Attributes:
        root: The run.
        rows: Its entries by folder, in natural order.
        pins: The tuned digests that are pinned.
    """

    def __init__(self, root: Path | BucketUrl, contents: RunContents) -> None:
        self.root = root
        self.rows = {row.folder: row for row in contents.rows}
        self.pins = contents.pins

    def current(self, name: str) -> IndexRow | None:
        """The last entry of a name."""
        found = [row for row in self.rows.values() if row.name == name]
        return max(found, key=lambda row: natural_order(row.folder), default=None)

    def before(self, step: int | None, name: str) -> IndexRow | None:
        """The entry before a checkpoint in training: the current one of the highest lower step."""
        others = [row for row in self.rows.values() if row.name != name]
        if step is None:
            return others[-1] if others else None
        earlier = [row for row in others if row.step is not None and row.step < step]
        return max(earlier, key=lambda row: (row.step, natural_order(row.folder)), default=None)

    @abstractmethod
    def require_held(self) -> None:
        """Require, before something is published, that this process may still write.

        Raises:
            RunLockedError: Another process took over.
        """

    @abstractmethod
    def new_entry(self, name: str) -> AbstractContextManager[Path]:
        """A folder for the delta of another entry of this name, for the ``with`` statement."""

    @abstractmethod
    def add(self, delta: Path, note: EntryNote, report: DeltaReport) -> IndexRow | None:
        """List the delta in a folder of :meth:`new_entry` as an entry.

        Args:
            delta: The folder, with the delta and its note.
            note: The note.
            report: What the delta holds.

        Returns:
            The entry's row; ``None`` if another writer has listed the same meanwhile.

        Raises:
            RunLockedError: Another process took over.
            BaseMismatchError: Another writer has listed a delta of another base meanwhile.
            OutputError: It cannot be written.
        """

    @abstractmethod
    def prune(
        self,
        unlisted: Sequence[IndexRow],
        removed: Sequence[str],
        pinned: Sequence[IndexRow],
        unpinned: Sequence[IndexRow],
    ) -> list[IndexRow]:
        """Unlist entries, remove what was unlisted before, and set pins.

        Args:
            unlisted: Entries to unlist.
            removed: Folders to remove, of :meth:`due`.
            pinned: Entries to pin.
            unpinned: Entries to unpin.

        Returns:
            The entries that were unlisted: not those that another process has pinned meanwhile.

        Raises:
            RunLockedError: Another process took over.
            OutputError: Something cannot be written or removed.
        """

    @abstractmethod
    def due(self, grace_seconds: float) -> list[str]:
        """Unlisted folders whose grace period is over, in natural order.

        Args:
            grace_seconds: Seconds from unlisting to removing, by the clock of the place.
        """


def not_a_run(place: object) -> NotFoundError:
    """The error for a place without entries, which may be a delta."""
    msg = "is not a run: it holds no folders with deltas"
    return NotFoundError(msg, file=printable(str(place)))


def require_base(root: Path | BucketUrl, name: str, digest: str, found: Sequence[IndexRow]) -> None:
    """Require that a delta of a run has the base of those found there.

    Raises:
        BaseMismatchError: It has another one.
    """
    if found and digest != found[0].base:
        msg = "was made against another base; remove it, or choose another folder for this run"
        raise BaseMismatchError(msg, file=root / name)


class WatcherState(ABC):
    """What a watcher keeps beside the run."""

    @abstractmethod
    def read(self, largest: int) -> bytes | None:
        """What was kept; ``None`` if there is nothing, or it cannot be read: it only saves work.

        Args:
            largest: Bytes to read at most.
        """

    @abstractmethod
    def write(self, text: bytes) -> None:
        """Keep this instead.

        Raises:
            OutputError: It cannot be written.
        """


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RepairReport(SummaryRepr):
    """What repairing found.

    Attributes:
        entries: Folders of the entries.
        added: Those that the index lacked.
        changed: Those of which the index said something else.
        dropped: Folders that the index named and that are gone.
        index_error: Why the earlier index was not read, or ``None``.
    """

    entries: list[str]
    added: list[str]
    changed: list[str]
    dropped: list[str]
    index_error: str | None

    @classmethod
    def of(
        cls,
        indexed: Mapping[str, IndexRow],
        index_error: str | None,
        rows: Mapping[str, IndexRow],
        unlisted: Collection[str],
    ) -> RepairReport:
        """A report by the earlier index, the entries, and the folders marked as none."""
        return cls(
            entries=list(rows),
            added=[folder for folder in rows if folder not in indexed],
            changed=[f for f, row in rows.items() if f in indexed and indexed[f] != row],
            dropped=sorted(indexed.keys() - rows.keys() - set(unlisted)),
            index_error=index_error,
        )

    def _summary(self) -> Rows:
        yield "entries", len(self.entries)
        yield "added", len(self.added)
        yield "changed", len(self.changed)
        yield "dropped", len(self.dropped)
