"""A training run over time: which words change when, and which revert to the base."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.analysis.aligned_deltas import AlignedDeltas
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import SharedTensor
    from rlsparse_store.delta.html_table import Rows

__all__ = ["SeriesReport", "SeriesStep", "measure_series"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

DISTANCES: Final = (1, 2, 4, 8, 16, 32)
"""Distances between checkpoints, in checkpoints, at which sparsity is measured."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SeriesStep(SummaryRepr):
    """One checkpoint of the run.

    Attributes:
        name: Name of its delta.
        changed: Words that differ from the base.
        density: changed / words.
        moved: Words that differ from the previous checkpoint; for the first, from the base.
        locality: Share of ``moved`` that also moved in an earlier step; ``None`` for the first
            checkpoint, and where nothing moved.
    """

    name: str
    changed: int
    density: float
    moved: int
    locality: float | None

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "changed", self.changed
        yield "density", self.density
        yield "moved", self.moved
        yield "locality", self.locality


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SeriesReport(SummaryRepr):
    """A run of checkpoints.

    Attributes:
        words: Words compared.
        steps: Checkpoints, in order.
        sparsity: Mean share of equal words in two checkpoints, by their distance in checkpoints.
            The base does not count as a checkpoint.
        ever_changed: Words that differ from the base in at least one checkpoint.
        finally_changed: Words that differ from the base in the last checkpoint.
        cancelled: ever_changed - finally_changed: words that reverted to the base.
        outside_final: cancelled / ever_changed; ``None`` if nothing ever changed.
        unmatched: Tensors that are not compared: missing from a checkpoint, stored whole, or
            removed.
    """

    words: int
    steps: list[SeriesStep]
    sparsity: dict[str, float]
    ever_changed: int
    finally_changed: int
    cancelled: int
    outside_final: float | None
    unmatched: list[str]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def _summary(self) -> Rows:
        yield "steps", len(self.steps)
        yield "words", self.words
        yield "ever_changed", self.ever_changed
        yield "cancelled", self.cancelled
        yield "unmatched", len(self.unmatched)
        yield from ((f"density[{step.name}]", step.density) for step in self.steps)


@dataclass(slots=True)
class _SeriesCounts:
    """Counts of one tensor.

    Attributes:
        words: Words compared.
        changed: Words that differ from the base, shape ``[checkpoints]``.
        moved: Words that differ from the previous checkpoint, shape ``[checkpoints]``.
        moved_again: Words of ``moved`` that also moved in an earlier step.
        differing: Words that differ between two checkpoints, by index of their distance in
            :data:`DISTANCES`, summed over all pairs at that distance.
        ever_changed: Words that differ from the base in at least one checkpoint.
    """

    words: int
    changed: NDArray[np.int64]
    moved: NDArray[np.int64]
    moved_again: NDArray[np.int64]
    differing: NDArray[np.int64]
    ever_changed: int


def measure_series(  # noqa: PLR0913 - ids with their revisions, and access to the Hub
    deltas: Sequence[str | PathLike[str]],
    *,
    base: str | PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SeriesReport:
    """Measure how the changed words evolve over the checkpoints of a run.

    Sparsity at distance k follows PULSE (arXiv 2602.03839, definition A.2), locality follows
    SparseRL-Sync (arXiv 2605.07330).

    Args:
        deltas: Two or more deltas in the order of training, or one run, whose deltas are taken in
            natural order: folders or ``org/name[@revision]``.
        base: Their base: a folder, a file or ``org/name[@revision]``; by default the one that
            they name.
        threads: Number of threads; by default one per processor.
        progress: Called with the bytes done and the bytes in total.
        revision: Branch, tag or commit of the deltas on the Hub, if their ids do not name one.
        base_revision: The same of the base.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: A delta or the base does not exist.
        BaseMismatchError: The deltas have different bases.
        FormatError: A delta is damaged.

    Example:
        >>> measure_series(["run"]).outside_final  # doctest: +SKIP
        0.08
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    opened = AlignedDeltas(deltas, base, access, revision=revision, base_revision=base_revision)
    with opened as aligned:
        counted = aligned.map(lambda t: _count(aligned, t), threads, progress)
        return _report(aligned, [counts for _, counts in counted])


def _count(deltas: AlignedDeltas, tensor: SharedTensor) -> _SeriesCounts:
    num_deltas = len(deltas.names)
    total = _SeriesCounts(
        words=0,
        changed=np.zeros(num_deltas, np.int64),
        moved=np.zeros(num_deltas, np.int64),
        moved_again=np.zeros(num_deltas, np.int64),
        differing=np.zeros(len(DISTANCES), np.int64),
        ever_changed=0,
    )
    for block in deltas.blocks(tensor):
        total.words += block.base.size
        ever_changed = np.zeros(block.base.size, np.bool_)
        ever_moved = np.zeros(block.base.size, np.bool_)
        for i, (before, after) in enumerate(pairwise([block.base, *block.tuned])):
            changed, moved = block.base != after, before != after
            total.changed[i] += np.count_nonzero(changed)
            total.moved[i] += np.count_nonzero(moved)
            total.moved_again[i] += np.count_nonzero(moved & ever_moved)
            ever_changed |= changed
            ever_moved |= moved
        total.ever_changed += int(np.count_nonzero(ever_changed))
        for i, distance in enumerate(DISTANCES):
            for earlier, later in zip(block.tuned, block.tuned[distance:], strict=False):
                total.differing[i] += np.count_nonzero(earlier != later)
    return total


def _report(deltas: AlignedDeltas, counts: list[_SeriesCounts]) -> SeriesReport:
    num_deltas = len(deltas.names)
    words = sum(c.words for c in counts)
    changed = _sum([c.changed for c in counts], num_deltas)
    moved = _sum([c.moved for c in counts], num_deltas)
    moved_again = _sum([c.moved_again for c in counts], num_deltas)
    differing = _sum([c.differing for c in counts], len(DISTANCES))
    ever_changed, finally_changed = sum(c.ever_changed for c in counts), changed[-1]
    cancelled = ever_changed - finally_changed
    return SeriesReport(
        words=words,
        steps=[
            SeriesStep(
                name=name,
                changed=changed[i],
                density=changed[i] / words if words else 0.0,
                moved=moved[i],
                locality=moved_again[i] / moved[i] if i and moved[i] else None,
            )
            for i, name in enumerate(deltas.names)
        ],
        sparsity={
            str(distance): 1 - differing[i] / (words * (num_deltas - distance))
            for i, distance in enumerate(DISTANCES)
            if distance < num_deltas and words
        },
        ever_changed=ever_changed,
        finally_changed=finally_changed,
        cancelled=cancelled,
        outside_final=cancelled / ever_changed if ever_changed else None,
        unmatched=deltas.unmatched,
    )


def _sum(counts: list[NDArray[np.int64]], size: int) -> list[int]:
    """The elementwise sum of arrays of this size; zeros if there are none."""
    total: list[int] = sum(counts, np.zeros(size, np.int64)).tolist()
    return total
