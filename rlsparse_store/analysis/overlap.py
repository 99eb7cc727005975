"""How far the updates of several deltas overlap, beside what chance would give."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.analysis.aligned_deltas import AlignedDeltas
from rlsparse_store.analysis.values import is_numeric, values_of
from rlsparse_store.delta.run import natural_order
from rlsparse_store.format.order import keys, steps
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.analysis.aligned_deltas import AlignedBlock
    from rlsparse_store.analysis.tensor_pairs import SharedTensor
    from rlsparse_store.format.words import Words

__all__ = ["BASELINES", "CompareReport", "Overlap", "PairOverlap", "compare_deltas"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

BASELINES: Final = ("uniform", "tensor", "magnitude")
"""What is held fixed by chance: the two densities; those of each tensor; those of each tensor at
each magnitude of the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two sets of changed words, A and B, within a group of tensors.

    Attributes:
        name: The group; empty for everything.
        words: Words compared.
        changed_a: Words that A changed.
        changed_b: Words that B changed.
        both: Words that both changed.
        one_sided_a: both / changed_a, or ``None`` if A changed nothing.
        one_sided_b: both / changed_b, likewise.
        jaccard: both / either, or ``None`` if neither changed anything.
        same_sign: Share of ``both`` whose steps go the same way, or ``None`` if it is empty.
        same_value: Share of ``both`` whose tuned words are equal, likewise.
        cosine: Cosine of the two updates as vectors of differences, finite values only; ``None``
            if one is zero, or too long for a float64.
        expected: Words that both would change by chance, by what is held fixed.
        lift: both / expected, or ``None`` if that is zero.
    """

    name: str
    words: int
    changed_a: int
    changed_b: int
    both: int
    one_sided_a: float | None
    one_sided_b: float | None
    jaccard: float | None
    same_sign: float | None
    same_value: float | None
    cosine: float | None
    expected: dict[str, float]
    lift: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOverlap:
    """Two deltas.

    Attributes:
        a: The first one's name.
        b: The second one's.
        overall: Over everything.
        layers: By layer.
        modules: By kind of module.
    """

    a: str
    b: str
    overall: Overlap
    layers: list[Overlap]
    modules: list[Overlap]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """Several deltas of one base.

    Attributes:
        deltas: Their names.
        words: Words compared.
        changed: Words that each changed.
        unmatched: Tensors that not all of them have, or not from one source, or that are stored
            whole or removed; they do not count.
        consensus: Words that were changed by exactly 0, 1, … of the deltas.
        mean_jaccard: Mean over all pairs, or ``None`` if it is undefined for one.
        pairs: Every pair.
    """

    deltas: list[str]
    words: int
    changed: list[int]
    unmatched: list[str]
    consensus: list[int]
    mean_jaccard: float | None
    pairs: list[PairOverlap]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


@dataclass(slots=True)
class _Counts:
    """What is counted of one tensor.

    Attributes:
        words: Words by bin of the base's magnitude.
        changed: Changed words of each delta by bin, ``[deltas, bins]``.
        pairs: For each pair of deltas: words both changed, the same way, to the same word.
        squares: Sum of squared differences of each delta.
        products: For each pair, the sum of the products of their differences.
        consensus: Words by how many deltas changed them.
    """

    words: NDArray[np.int64]
    changed: NDArray[np.int64]
    pairs: NDArray[np.int64]
    squares: NDArray[np.float64]
    products: NDArray[np.float64]
    consensus: NDArray[np.int64]


def compare_deltas(
    deltas: Sequence[str | Path],
    *,
    base: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> CompareReport:
    """Compare which words several deltas of one base changed, and how.

    Definitions are those of Mukherjee et al. (one-sided overlaps, arXiv 2505.11711, appendix E)
    and of *The Path Not Taken* (Jaccard, consensus, arXiv 2511.08567). Chance given the tensor and
    the base's magnitude is the baseline to look at: small weights change in any run.

    Args:
        deltas: Two or more folders of deltas or ids on the Hub, or one run, likewise.
        base: Their base; by default the one that they name.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        NotFoundError: One is not there.
        BaseMismatchError: They are not of one base.
        FormatError: One is damaged.

    Example:
        >>> compare_deltas(["seed-0", "seed-1"]).pairs[0].overall.jaccard  # doctest: +SKIP
        0.62
    """
    with AlignedDeltas(deltas, base) as found:
        return _report(found, found.map(lambda t: _count(found, t), threads, progress))


def _count(deltas: AlignedDeltas, tensor: SharedTensor) -> _Counts:
    number = len(deltas.names)
    mantissa, coding = tensor.dtype.mantissa_bits, tensor.dtype.coding
    bins = 1 if mantissa is None else 1 << (coding.key_bits - mantissa)
    total = _Counts(
        np.zeros(bins, np.int64),
        np.zeros((number, bins), np.int64),
        np.zeros((number * (number - 1) // 2, 3), np.int64),
        np.zeros(number),
        np.zeros(number * (number - 1) // 2),
        np.zeros(number + 1, np.int64),
    )
    for block in deltas.blocks(tensor):
        key = keys(block.base, coding)
        magnitude = key >> key.dtype.type(mantissa) if mantissa is not None else key & 0
        total.words += np.bincount(magnitude, minlength=bins)
        masks = [block.base != tuned for tuned in block.tuned]
        for place, mask in enumerate(masks):
            total.changed[place] += np.bincount(magnitude[mask], minlength=bins)
            update = _update(block, place, mask, tensor)
            total.squares[place] += np.einsum("i,i->", update, update)
        times = np.sum(masks, axis=0, dtype=np.uint8 if number < 256 else np.int64)
        total.consensus += np.bincount(times, minlength=number + 1)
        for place, (a, b) in enumerate(combinations(range(number), 2)):
            both = masks[a] & masks[b]
            total.pairs[place] += _agreement(block, a, b, both, tensor)
            left, right = (_update(block, one, both, tensor) for one in (a, b))
            total.products[place] += np.einsum("i,i->", left, right)
    return total


def _update(
    block: AlignedBlock, place: int, mask: NDArray[np.bool_], tensor: SharedTensor
) -> NDArray[np.float64]:
    """The differences that a delta makes at some words; 0 where they are not finite."""
    if not is_numeric(tensor.dtype):
        return np.zeros(0)
    with np.errstate(all="ignore"):
        after = values_of(block.tuned[place][mask], tensor.dtype).astype(np.float64)
        found = after - values_of(block.base[mask], tensor.dtype)
    return np.where(np.isfinite(found), found, 0.0)


def _agreement(
    block: AlignedBlock, a: int, b: int, both: NDArray[np.bool_], tensor: SharedTensor
) -> tuple[int, int, int]:
    """Words that both changed, that moved the same way, that became the same."""
    base, left, right = (words[both] for words in (block.base, block.tuned[a], block.tuned[b]))
    same_sign = _is_down(base, left, tensor) == _is_down(base, right, tensor)
    equal = np.count_nonzero(left == right)
    return base.size, int(np.count_nonzero(same_sign)), int(equal)


def _is_down(base: Words, tuned: Words, tensor: SharedTensor) -> NDArray[np.bool_]:
    return steps(base, tuned, tensor.dtype.coding) < 0


def _report(deltas: AlignedDeltas, counted: list[tuple[SharedTensor, _Counts]]) -> CompareReport:
    number = len(deltas.names)
    changed = np.zeros(number, np.int64)
    consensus = np.zeros(number + 1, np.int64)
    for _, counts in counted:
        changed += counts.changed.sum(1)
        consensus += counts.consensus
    pairs = [
        PairOverlap(
            a=deltas.names[a],
            b=deltas.names[b],
            overall=_overlap("", counted, a, b, place),
            layers=_grouped(counted, "layer", a, b, place),
            modules=_grouped(counted, "module", a, b, place),
        )
        for place, (a, b) in enumerate(combinations(range(number), 2))
    ]
    jaccards = [pair.overall.jaccard for pair in pairs]
    known = [jaccard for jaccard in jaccards if jaccard is not None]
    return CompareReport(
        deltas=deltas.names,
        words=int(consensus.sum()),
        changed=changed.tolist(),
        unmatched=deltas.unmatched,
        consensus=consensus.tolist(),
        mean_jaccard=sum(known) / len(known) if len(known) == len(jaccards) else None,
        pairs=pairs,
    )


def _grouped(
    counted: list[tuple[SharedTensor, _Counts]], attribute: str, a: int, b: int, place: int
) -> list[Overlap]:
    members: defaultdict[str, list[tuple[SharedTensor, _Counts]]] = defaultdict(list)
    for tensor, counts in counted:
        members[getattr(tensor, attribute)].append((tensor, counts))
    return [
        _overlap(name, members[name], a, b, place) for name in sorted(members, key=natural_order)
    ]


def _overlap(
    name: str, counted: list[tuple[SharedTensor, _Counts]], a: int, b: int, place: int
) -> Overlap:
    words = sum(int(c.words.sum()) for _, c in counted)
    of_a = sum(int(c.changed[a].sum()) for _, c in counted)
    of_b = sum(int(c.changed[b].sum()) for _, c in counted)
    both, same_sign, same_value = (
        sum(int(c.pairs[place, which]) for _, c in counted) for which in range(3)
    )
    expected = {
        "uniform": of_a * of_b / words if words else 0.0,
        "tensor": sum(_by_chance(c.changed[a].sum(), c.changed[b].sum(), c) for _, c in counted),
        "magnitude": sum(_by_magnitude(c.changed[a], c.changed[b], c.words) for _, c in counted),
    }
    return Overlap(
        name=name,
        words=words,
        changed_a=of_a,
        changed_b=of_b,
        both=both,
        one_sided_a=_share(both, of_a),
        one_sided_b=_share(both, of_b),
        jaccard=_share(both, of_a + of_b - both),
        same_sign=_share(same_sign, both),
        same_value=_share(same_value, both),
        cosine=_cosine(counted, a, b, place),
        expected=expected,
        lift={baseline: _share(both, chance) for baseline, chance in expected.items()},
    )


def _cosine(
    counted: list[tuple[SharedTensor, _Counts]], a: int, b: int, place: int
) -> float | None:
    product = sum(float(c.products[place]) for _, c in counted)
    lengths = [sum(float(c.squares[one]) for _, c in counted) ** 0.5 for one in (a, b)]
    found = _share(product, lengths[0] * lengths[1])
    # Squares of float64 differences may be infinite, and JSON has no word for what follows.
    return (
        found if found is not None and isfinite(product) and all(map(isfinite, lengths)) else None
    )


def _by_chance(a: int, b: int, counts: _Counts) -> float:
    words = int(counts.words.sum())
    return int(a) * int(b) / words if words else 0.0


def _by_magnitude(a: NDArray[np.int64], b: NDArray[np.int64], words: NDArray[np.int64]) -> float:
    used = words > 0
    return float((a[used].astype(np.float64) * b[used] / words[used]).sum())


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
