"""Pruning a run: which entries are kept, and how the others are removed (``specs/runs.md``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlsparse_store.delta.entry_choice import best_entry, choose_entry, in_training_order
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_place import not_a_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.delta.run_files import IndexRow
    from rlsparse_store.delta.run_place import RunPlace

__all__ = ["GRACE_SECONDS", "PruneReport", "prune_run"]

GRACE_SECONDS = 3600.0
"""Seconds between unlisting an entry and removing it, by default: readers have it open."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PruneReport(SummaryRepr):
    """What pruning did, or would do.

    Attributes:
        kept: Folders of the entries that stay, in order.
        unlisted: Folders of those that are no entries any more, and will be removed.
        unlisted_bytes: Bytes of their deltas.
        removed: Folders that an earlier call unlisted and this one removed.
        dry_run: Whether nothing was done.
    """

    kept: list[str]
    unlisted: list[str]
    unlisted_bytes: int
    removed: list[str]
    dry_run: bool

    def _summary(self) -> Rows:
        yield "kept", len(self.kept)
        yield "unlisted", len(self.unlisted)
        yield "unlisted_bytes", self.unlisted_bytes
        yield "removed", len(self.removed)


def prune_run(  # noqa: PLR0913 - each option is one of the command line's
    run: str | PathLike[str],
    *,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: str | None = None,
    best: Literal["max", "min"] = "max",
    pin: Sequence[str] = (),
    unpin: Sequence[str] = (),
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
) -> PruneReport:
    """Remove the entries of a run that no rule keeps.

    An entry is kept if any rule keeps it or it is pinned. Without a rule nothing is unlisted, and
    the call pins, unpins, and removes what earlier ones unlisted. An entry is unlisted first: it is
    gone for readers of the run, and its files stay. A call after the grace period removes them.

    Rules apply to the current entry of each name; an older one of the same name is kept only by a
    pin.

    Args:
        run: Folder of the run, or its URL in object storage.
        keep_last: How many of the last entries are kept, in the order of their steps.
        keep_every: Entries whose step is a multiple of this are kept.
        keep_best: The metric whose best entry is kept.
        best: Whether the best one is the largest or the smallest.
        pin: Names, folders or digests of entries that this call pins.
        unpin: The same of entries whose pins it removes.
        grace_seconds: Seconds between unlisting an entry and removing it.
        dry_run: Only report.

    Raises:
        NotFoundError: There is no such run or entry, or no entry has the metric.
        RunLockedError: Another process is writing.
        RunError: The run's index or an entry's note is damaged.
        OutputError: A file cannot be written or removed.
        BucketError: The object storage failed.

    Example:
        >>> prune_run("run", keep_last=3, keep_best="reward").kept  # doctest: +SKIP
        ['checkpoint-200', 'checkpoint-280', 'checkpoint-290', 'checkpoint-300']
    """
    place = place_of(run)
    if not place.has_removable():
        raise not_a_run(run)
    with place.write() as writer:
        rows = list(writer.rows.values())
        to_pin = [choose_entry(rows, name, place.root) for name in pin]
        to_unpin = [choose_entry(rows, name, place.root) for name in unpin]
        pinned = (writer.pins - {row.tuned for row in to_unpin}) | {row.tuned for row in to_pin}
        current = in_training_order(list({row.name: row for row in rows}.values()))
        chosen = _chosen(place, current, keep_last, keep_every, keep_best, best)
        unlisted = [
            row
            for row in rows
            if chosen is not None and row.folder not in chosen and row.tuned not in pinned
        ]
        removed = writer.due(grace_seconds)
        if not dry_run:
            unlisted = writer.prune(unlisted, removed, to_pin, to_unpin)
        return PruneReport(
            kept=[row.folder for row in rows if row not in unlisted],
            unlisted=[row.folder for row in unlisted],
            unlisted_bytes=sum(row.delta_bytes for row in unlisted),
            removed=removed,
            dry_run=dry_run,
        )


def _chosen(
    run: RunPlace,
    current: Sequence[IndexRow],
    keep_last: int | None,
    keep_every: int | None,
    keep_best: str | None,
    best: str,
) -> set[str] | None:
    """The folders that the rules keep; ``None`` without a rule."""
    if keep_last is None and keep_every is None and keep_best is None:
        return None
    chosen = list(current[max(0, len(current) - keep_last) :]) if keep_last is not None else []
    if keep_every is not None:
        chosen += [r for r in current if r.step is not None and r.step % keep_every == 0]
    if keep_best is not None:
        chosen.append(best_entry(current, keep_best, best, run.root))
    return {row.folder for row in chosen}
