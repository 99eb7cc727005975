"""A training run over time: which words changed when, and which came back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.analysis.aligned_deltas import AlignedDeltas
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import SharedTensor

__all__ = ["DISTANCES", "SeriesReport", "SeriesStep", "measure_series"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

DISTANCES: Final = (1, 2, 4, 8, 16, 32)
"""Checkpoints apart, over which sparsity is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesStep:
    """One checkpoint of the run.

    Attributes:
        name: Its delta's name.
        changed: Words that differ from the base's.
        density: changed / words.
        moved: Words that differ from the checkpoint before; from the base's for the first.
        locality: Share of ``moved`` that had moved in an earlier step already; ``None`` for the
            first, and where nothing moved.
    """

    name: str
    changed: int
    density: float
    moved: int
    locality: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesReport:
    """A run.

    Attributes:
        words: Words compared.
        steps: Its checkpoints, in order.
        sparsity: Mean share of words that are the same in checkpoints so far apart, by distance;
            the base is none of them.
        ever_changed: Words that differed from the base's in some checkpoint.
        finally_changed: Those of them that do in the last.
        cancelled: Those that do not.
        outside_final: cancelled / ever_changed, or ``None`` if nothing ever changed.
        unmatched: Tensors that not all checkpoints have, stored whole or removed; they do not
            count.
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


@dataclass(slots=True)
class _Counts:
    """What is counted of one tensor.

    Attributes:
        words: Its words.
        changed: Words that differ from the base's, by checkpoint.
        moved: Words that differ from the checkpoint before.
        again: Those of them that had moved before.
        apart: Words that differ between checkpoints so far apart, by place of the distance.
        ever: Words that ever changed.
    """

    words: int
    changed: NDArray[np.int64]
    moved: NDArray[np.int64]
    again: NDArray[np.int64]
    apart: NDArray[np.int64]
    ever: int


def measure_series(
    deltas: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> SeriesReport:
    """Follow a run through its deltas, in the order given.

    Sparsity over k checkpoints is PULSE's (arXiv 2602.03839, definition A.2); locality is that of
    SparseRL-Sync (arXiv 2605.07330).

    Args:
        deltas: Two or more folders of deltas or ids on the Hub, or one run, likewise, whose deltas
            are taken in natural order.
        base: Their base; by default the one that they name.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        NotFoundError: One is not there.
        BaseMismatchError: They are not of one base.
        FormatError: One is damaged.

    Example:
        >>> measure_series(["run"]).outside_final  # doctest: +SKIP
        0.08
    """
    with AlignedDeltas(deltas, base) as found:
        counts = found.map(lambda t: _count(found, t), threads, progress)
        return _report(found, [counted for _, counted in counts])


def _count(deltas: AlignedDeltas, tensor: SharedTensor) -> _Counts:
    number = len(deltas.names)
    total = _Counts(
        0,
        np.zeros(number, np.int64),
        np.zeros(number, np.int64),
        np.zeros(number, np.int64),
        np.zeros(len(DISTANCES), np.int64),
        0,
    )
    for block in deltas.blocks(tensor):
        states = [block.base, *block.tuned]
        total.words += block.base.size
        ever = np.zeros(block.base.size, np.bool_)
        moved_before = np.zeros(block.base.size, np.bool_)
        for place, (before, after) in enumerate(pairwise(states)):
            changed, moved = block.base != after, before != after
            total.changed[place] += np.count_nonzero(changed)
            total.moved[place] += np.count_nonzero(moved)
            total.again[place] += np.count_nonzero(moved & moved_before)
            ever |= changed
            moved_before |= moved
        total.ever += int(np.count_nonzero(ever))
        for place, distance in enumerate(DISTANCES):
            for one, other in zip(block.tuned, block.tuned[distance:], strict=False):
                total.apart[place] += np.count_nonzero(one != other)
    return total


def _report(deltas: AlignedDeltas, counts: list[_Counts]) -> SeriesReport:
    number = len(deltas.names)
    words = sum(c.words for c in counts)
    changed = _sum([c.changed for c in counts], number)
    moved = _sum([c.moved for c in counts], number)
    again = _sum([c.again for c in counts], number)
    apart = _sum([c.apart for c in counts], len(DISTANCES))
    ever, final = sum(c.ever for c in counts), changed[-1]
    return SeriesReport(
        words=words,
        steps=[
            SeriesStep(
                name=name,
                changed=changed[place],
                density=changed[place] / words if words else 0.0,
                moved=moved[place],
                locality=again[place] / moved[place] if place and moved[place] else None,
            )
            for place, name in enumerate(deltas.names)
        ],
        sparsity={
            str(distance): 1 - apart[place] / (words * (number - distance))
            for place, distance in enumerate(DISTANCES)
            if distance < number and words
        },
        ever_changed=ever,
        finally_changed=final,
        cancelled=ever - final,
        outside_final=(ever - final) / ever if ever else None,
        unmatched=deltas.unmatched,
    )


def _sum(counts: list[NDArray[np.int64]], size: int) -> list[int]:
    """The sums over tensors, place by place."""
    total = np.zeros(size, np.int64)
    for one in counts:
        total += one
    found: list[int] = total.tolist()
    return found
