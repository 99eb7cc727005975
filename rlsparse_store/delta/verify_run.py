"""Verifying a run: each of its deltas, and what it holds beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_files import INDEX_NAME
from rlsparse_store.delta.run_place import not_a_run
from rlsparse_store.delta.verify import VerifyReport, verify_delta
from rlsparse_store.errors import BaseMismatchError, RunError
from rlsparse_store.format.names import printable
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows

__all__ = ["VerifyRunReport", "verify_run"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerifyRunReport(SummaryRepr):
    """What was verified. A failure raises instead.

    Attributes:
        entries: What was verified of each entry, by its folder.
    """

    entries: dict[str, VerifyReport]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    def _summary(self) -> Rows:
        yield "entries", len(self.entries)


def verify_run(
    run: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    **options: Any,  # noqa: ANN401 - those of verify_delta
) -> VerifyRunReport:
    """Verify a run: every delta, every note, and that the index says the same.

    Args:
        run: Folder of the run, or its URL in object storage.
        base: The base, to decode every delta.
        threads: Threads to decode on; all processors by default.
        progress: Called with bytes done and bytes in all, of one entry after another.
        **options: As for :func:`verify_delta`.

    Raises:
        NotFoundError: There is no such run, or it holds no deltas.
        FormatError: A delta is damaged.
        BaseMismatchError: The entries have different bases, or the base is another checkpoint.
        RunError: The index or a note is damaged, or says something else than the entries.

    Example:
        >>> len(verify_run("run").entries)  # doctest: +SKIP
        20
    """
    place = place_of(run)
    rows = place.read().rows
    if not rows:
        raise not_a_run(run)
    found = {}
    for row in rows:
        if place.read_row(row.folder) != row:
            msg = (
                f"disagrees with the entry {printable(row.folder)}; rlsparse runs "
                "repair writes it anew"
            )
            raise RunError(msg, file=place.root / INDEX_NAME)
        if row.base != rows[0].base:
            msg = "was made against another base than the other entries of its run"
            raise BaseMismatchError(msg, file=place.root / row.folder)
        found[row.folder] = verify_delta(
            place.entry(row.folder), base=base, threads=threads, progress=progress, **options
        )
    return VerifyRunReport(entries=found)
