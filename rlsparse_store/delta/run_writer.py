"""Writing a run: entries first, the index last (``specs/runs.md``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.delta.run import place_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from os import PathLike

    from rlsparse_store.delta.run_place import RepairReport, RunWriter

__all__ = ["repair_run", "write_run"]


def write_run(run: str | PathLike[str]) -> AbstractContextManager[RunWriter]:
    """The writer of a run, for the ``with`` statement.

    Args:
        run: Folder of the run, which is created if there is none, or its URL in object storage.

    Raises:
        RunLockedError: Another process is writing.
        RunError: The index is damaged, or names an entry whose folder is gone.
    """
    return place_of(run).write()


def repair_run(run: str | PathLike[str]) -> RepairReport:
    """Make the index of a run again from its entries. Removes nothing.

    Args:
        run: Folder of the run, or its URL in object storage.

    Raises:
        NotFoundError: There is no such run, or it holds no deltas.
        RunLockedError: Another process is writing.
        RunError: An entry's note is damaged.
        FormatError: A delta is damaged.
        BucketError: The object storage failed.

    Example:
        >>> repair_run("run").added  # doctest: +SKIP
        ['checkpoint-300']
    """
    return place_of(run).repair()
