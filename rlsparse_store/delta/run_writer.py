"""Writing a run: one writer at a time, entries first, the index last (``specs/runs.md``)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.run import list_entries, read_row
from rlsparse_store.delta.run_files import (
    IndexRow,
    delta_names,
    marks_folder,
    natural_order,
    pins_folder,
    private_folder,
    read_index,
    unlisted_names,
    write_index,
)
from rlsparse_store.errors import NotFoundError, RunError
from rlsparse_store.files.output import output_errors, remove_stale
from rlsparse_store.files.writer_lock import WriterLock
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows

__all__ = ["RepairReport", "RunWriter", "repair_run", "write_run"]


@contextmanager
def write_run(run: Path) -> Iterator[RunWriter]:
    """The writer of a run, which holds the run's lock within the ``with`` statement.

    Args:
        run: Folder of the run, which is created if there is none.

    Raises:
        RunLockedError: Another process is writing.
        RunError: The index is damaged, or names an entry whose folder is gone.
    """
    with WriterLock(private_folder(run), run) as lock:
        # What killed writers were writing.
        with output_errors(run):
            for folder in (run, marks_folder(run), pins_folder(run)):
                remove_stale(folder)
        yield RunWriter(run, lock)


class RunWriter:
    """Lists entries in a run's index, while the run is locked (:func:`write_run`).

    Args:
        run: Folder of the run.
        lock: Its lock, held.

    Attributes:
        rows: The entries by folder, in natural order.
    """

    def __init__(self, run: Path, lock: WriterLock) -> None:
        self.run = run
        # A killed writer may have left an entry without a row: this finds it.
        self.rows = {row.folder: row for row in list_entries(run)}
        self._lock = lock

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

    def free_folder(self, name: str) -> str:
        """A folder for another entry of this name: the name, with a number if it is taken."""
        folder, number = name, 1
        while (self.run / folder).exists() or (marks_folder(self.run) / folder).exists():
            number += 1
            folder = f"{name}.{number}"
        return folder

    def require_held(self) -> None:
        """Require, before something is published, that this is the writer still.

        Raises:
            RunLockedError: Another process took over.
        """
        self._lock.require_held()

    def add(self, row: IndexRow) -> None:
        """List an entry whose folder is in place."""
        self.rows[row.folder] = row
        self.publish()

    def publish_missing(self) -> None:
        """Publish the index if it is behind the entries, as a killed writer leaves it.

        Raises:
            RunLockedError: Another process took over.
            OutputError: It cannot be written.
        """
        if read_index(self.run) != self.rows:
            self.publish()

    def publish(self) -> None:
        """Publish the index.

        Raises:
            RunLockedError: Another process took over.
            OutputError: It cannot be written.
        """
        self.require_held()
        write_index(self.run, self.rows.values())


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

    def _summary(self) -> Rows:
        yield "entries", len(self.entries)
        yield "added", len(self.added)
        yield "changed", len(self.changed)
        yield "dropped", len(self.dropped)


def repair_run(run: str | PathLike[str]) -> RepairReport:
    """Make the index of a run again from its entries. Removes nothing.

    Args:
        run: Folder of the run.

    Raises:
        NotFoundError: There is no such folder, or it holds no deltas.
        RunLockedError: Another process is writing.
        RunError: An entry's note is damaged.
        FormatError: A delta is damaged.

    Example:
        >>> repair_run("run").added  # doctest: +SKIP
        ['checkpoint-300']
    """
    run = Path(run)
    if not delta_names(run):
        msg = "holds no deltas"
        raise NotFoundError(msg, file=printable(str(run)))
    with WriterLock(private_folder(run), run) as lock:
        index_error, indexed = None, {}
        try:
            indexed = read_index(run)
        except RunError as error:
            index_error = error.message
        rows = {folder: read_row(run / folder) for folder in delta_names(run)}
        lock.require_held()
        write_index(run, rows.values())
        return RepairReport(
            entries=list(rows),
            added=[folder for folder in rows if folder not in indexed],
            changed=[f for f, row in rows.items() if f in indexed and indexed[f] != row],
            dropped=sorted(indexed.keys() - rows.keys() - unlisted_names(run)),
            index_error=index_error,
        )
