"""Overlap of the updates of several deltas, with the overlap expected by chance."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from rlsparse_store.analysis.aligned_deltas import AlignedDeltas
from rlsparse_store.analysis.measures import count_exponents, count_few_exponents, num_exponents
from rlsparse_store.analysis.numeric import as_floats, is_numeric
from rlsparse_store.analysis.selection import flags, select
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.format.order import steps
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import SharedTensor
    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = ["BASELINES", "CompareReport", "Overlap", "PairOverlap", "compare_deltas"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

BASELINES: Final = ("uniform", "tensor", "magnitude")
"""What the expectation by chance is matched on: the overall densities; the densities of each
tensor; the densities of each tensor at each magnitude of the base."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Overlap(SummaryRepr):
    """Overlap of the words changed by A and by B, within a group of tensors.

    Attributes:
        name: Name of the group; empty for all tensors.
        words: Words compared.
        changed_a: Words that A changed.
        changed_b: Words that B changed.
        both: Words that both changed.
        one_sided_a: both / changed_a; ``None`` if A changed nothing.
        one_sided_b: both / changed_b; ``None`` if B changed nothing.
        jaccard: both / (changed_a + changed_b - both); ``None`` if nothing changed.
        same_sign: Share of ``both`` whose steps have the same sign; ``None`` if ``both`` is 0.
        same_value: Share of ``both`` whose tuned words are equal; ``None`` if ``both`` is 0.
        cosine: Cosine similarity of the two updates over finite values; ``None`` if one is zero
            or its norm exceeds float64.
        expected: Words that both would change by chance, by baseline (:data:`BASELINES`).
        lift: both / expected, by baseline; ``None`` where the expectation is zero.
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

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "words", self.words
        yield "both", self.both
        yield "jaccard", self.jaccard
        yield from ((f"lift[{baseline}]", lift) for baseline, lift in self.lift.items())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PairOverlap(SummaryRepr):
    """Overlap of two deltas.

    Attributes:
        a: Name of the first delta.
        b: Name of the second delta.
        overall: Overlap over all tensors.
        layers: Overlap by layer.
        modules: Overlap by kind of module.
    """

    a: str
    b: str
    overall: Overlap
    layers: list[Overlap]
    modules: list[Overlap]

    def _summary(self) -> Rows:
        yield "a", self.a
        yield "b", self.b
        yield "jaccard", self.overall.jaccard
        yield from ((f"lift[{baseline}]", lift) for baseline, lift in self.overall.lift.items())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CompareReport(SummaryRepr):
    """Overlap of several deltas of one base.

    Attributes:
        deltas: Names of the deltas.
        words: Words compared.
        changed: Changed words by delta.
        unmatched: Tensors that are not compared: missing from a delta, of different sources,
            stored whole, or removed.
        consensus: Words that exactly 0, 1, … of the deltas changed.
        mean_jaccard: Mean over all pairs; ``None`` if it is undefined for one of them.
        pairs: Overlap of every pair.
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

    def _summary(self) -> Rows:
        yield "deltas", len(self.deltas)
        yield "words", self.words
        yield "mean_jaccard", self.mean_jaccard
        yield "unmatched", len(self.unmatched)
        for name, changed in zip(self.deltas, self.changed, strict=True):
            yield f"changed[{name}]", changed
        for pair in self.pairs:
            yield f"jaccard[{pair.a}, {pair.b}]", pair.overall.jaccard


@dataclass(slots=True)
class _OverlapCounts:
    """Counts of one tensor.

    Attributes:
        words: Words by magnitude bin of the base, shape ``[bins]``.
        changed: Changed words, shape ``[deltas, bins]``.
        pairs: Words that both deltas changed, changed in the same direction, and changed to the
            same word, shape ``[pairs, 3]``.
        squares: Sum of squared differences, shape ``[deltas]``.
        products: Sum of the products of two differences, shape ``[pairs]``.
        consensus: Words by the number of deltas that changed them, shape ``[deltas + 1]``.
    """

    words: NDArray[np.int64]
    changed: NDArray[np.int64]
    pairs: NDArray[np.int64]
    squares: NDArray[np.float64]
    products: NDArray[np.float64]
    consensus: NDArray[np.int64]


def compare_deltas(  # noqa: PLR0913 - ids with their revisions, and access to the Hub
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
) -> CompareReport:
    """Compare which words several deltas of one base changed, and how.

    Definitions follow Mukherjee et al. (one-sided overlap, arXiv 2505.11711, appendix E) and *The
    Path Not Taken* (Jaccard, consensus, arXiv 2511.08567). Small weights change in any run, so
    compare with chance matched on tensor and magnitude.

    Args:
        deltas: Two or more deltas, or one run: folders or ``org/name[@revision]``.
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
        >>> compare_deltas(["seed-0", "seed-1"]).pairs[0].overall.jaccard  # doctest: +SKIP
        0.62
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    opened = AlignedDeltas(deltas, base, access, revision=revision, base_revision=base_revision)
    with opened as aligned:
        return _report(aligned, aligned.map(lambda t: _count(aligned, t), threads, progress))


def _count(deltas: AlignedDeltas, tensor: SharedTensor) -> _OverlapCounts:
    num_deltas = len(deltas.names)
    num_pairs = num_deltas * (num_deltas - 1) // 2
    bins = num_exponents(tensor.dtype)
    total = _OverlapCounts(
        words=np.zeros(bins, np.int64),
        changed=np.zeros((num_deltas, bins), np.int64),
        pairs=np.zeros((num_pairs, 3), np.int64),
        squares=np.zeros(num_deltas),
        products=np.zeros(num_pairs),
        consensus=np.zeros(num_deltas + 1, np.int64),
    )
    votes_type = np.uint8 if num_deltas < 256 else np.uint32
    for block in deltas.blocks(tensor):
        total.words += count_exponents(block.base, tensor.dtype)
        updates = [_Update.of(block.base, tuned, tensor.dtype) for tuned in block.tuned]
        votes: NDArray[Any] = np.zeros(block.base.size, votes_type)
        for i, update in enumerate(updates):
            total.changed[i] += count_few_exponents(update.before, tensor.dtype)
            total.squares[i] += np.einsum("i,i->", update.difference, update.difference)
            votes += update.is_changed
        for k in range(1, num_deltas + 1):
            total.consensus[k] += np.count_nonzero(votes == k)
        total.consensus[0] += np.count_nonzero(votes == 0)
        for pair, (left, right) in enumerate(combinations(updates, 2)):
            agreement, product = left.compare(right)
            total.pairs[pair] += agreement
            total.products[pair] += product
    return total


class _Update(NamedTuple):
    """The update of a block by one delta.

    Attributes:
        before: The changed words of the base.
        after: The same words, tuned.
        is_changed: Whether each word of the block changed.
        is_negative: Whether each changed word's step is negative.
        difference: Difference from the base of each changed word, 0 where it is not finite; empty
            if the words are not numeric.
    """

    before: Words
    after: Words
    is_changed: NDArray[np.bool_]
    is_negative: NDArray[np.bool_]
    difference: NDArray[np.float64]

    @classmethod
    def of(cls, base: Words, tuned: Words, dtype: Dtype) -> _Update:
        """Return the update of a block."""
        changed = get_backend().changed_words(base, tuned, dtype.coding)
        before, after, is_changed = changed.before, changed.after, flags(changed, base.size)
        is_negative = steps(before, after, dtype.coding) < 0
        difference = np.zeros(0)
        if is_numeric(dtype):
            with np.errstate(all="ignore"):
                difference = as_floats(after, dtype).astype(np.float64) - as_floats(before, dtype)
            difference = np.where(np.isfinite(difference), difference, 0.0)
        return cls(before, after, is_changed, is_negative, difference)

    def compare(self, other: _Update) -> tuple[tuple[int, int, int], float]:
        """Compare the words that both updates changed.

        Returns:
            Their number, how many changed in the same direction, and how many to the same word.
            And the sum of the products of their differences.
        """
        own, others = (
            select(mask.view(np.uint8), by).view(np.bool_)
            for mask, by in (
                (other.is_changed, self.is_changed),
                (self.is_changed, other.is_changed),
            )
        )
        same_sign = self.is_negative[own] == other.is_negative[others]
        same_word = self.after[own] == other.after[others]
        counts = same_sign.size, int(same_sign.sum()), int(same_word.sum())
        if not self.difference.size or not other.difference.size:
            return counts, 0.0
        product = np.einsum("i,i->", self.difference[own], other.difference[others])
        return counts, float(product)


Counted: TypeAlias = "list[tuple[SharedTensor, _OverlapCounts]]"


def _report(deltas: AlignedDeltas, counted: Counted) -> CompareReport:
    num_deltas = len(deltas.names)
    changed = np.zeros(num_deltas, np.int64)
    consensus = np.zeros(num_deltas + 1, np.int64)
    for _, counts in counted:
        changed += counts.changed.sum(1)
        consensus += counts.consensus
    pairs = [
        PairOverlap(
            a=deltas.names[a],
            b=deltas.names[b],
            overall=_overlap("", counted, a, b, pair),
            layers=_by_group(counted, "layer", a, b, pair),
            modules=_by_group(counted, "module", a, b, pair),
        )
        for pair, (a, b) in enumerate(combinations(range(num_deltas), 2))
    ]
    jaccards = [pair.overall.jaccard for pair in pairs]
    defined = [jaccard for jaccard in jaccards if jaccard is not None]
    return CompareReport(
        deltas=deltas.names,
        words=int(consensus.sum()),
        changed=changed.tolist(),
        unmatched=deltas.unmatched,
        consensus=consensus.tolist(),
        mean_jaccard=sum(defined) / len(defined) if len(defined) == len(jaccards) else None,
        pairs=pairs,
    )


def _by_group(
    counted: Counted, attribute: Literal["layer", "module"], a: int, b: int, pair: int
) -> list[Overlap]:
    members: defaultdict[str, Counted] = defaultdict(list)
    for tensor, counts in counted:
        members[getattr(tensor, attribute)].append((tensor, counts))
    return [
        _overlap(name, members[name], a, b, pair) for name in sorted(members, key=natural_order)
    ]


def _overlap(name: str, counted: Counted, a: int, b: int, pair: int) -> Overlap:
    words = sum(int(c.words.sum()) for _, c in counted)
    changed_a = sum(int(c.changed[a].sum()) for _, c in counted)
    changed_b = sum(int(c.changed[b].sum()) for _, c in counted)
    both, same_sign, same_value = (
        sum(int(c.pairs[pair, column]) for _, c in counted) for column in range(3)
    )
    expected = {
        "uniform": changed_a * changed_b / words if words else 0.0,
        "tensor": sum(_expected_in_tensor(c, a, b) for _, c in counted),
        "magnitude": sum(_expected_by_bin(c, a, b) for _, c in counted),
    }
    return Overlap(
        name=name,
        words=words,
        changed_a=changed_a,
        changed_b=changed_b,
        both=both,
        one_sided_a=_ratio(both, changed_a),
        one_sided_b=_ratio(both, changed_b),
        jaccard=_ratio(both, changed_a + changed_b - both),
        same_sign=_ratio(same_sign, both),
        same_value=_ratio(same_value, both),
        cosine=_cosine(counted, a, b, pair),
        expected=expected,
        lift={baseline: _ratio(both, chance) for baseline, chance in expected.items()},
    )


def _cosine(counted: Counted, a: int, b: int, pair: int) -> float | None:
    product = sum(float(c.products[pair]) for _, c in counted)
    norms = [sum(float(c.squares[delta]) for _, c in counted) ** 0.5 for delta in (a, b)]
    # The squares may overflow, and JSON has no infinity.
    if not isfinite(product) or not all(map(isfinite, norms)):
        return None
    return _ratio(product, norms[0] * norms[1])


def _expected_in_tensor(counts: _OverlapCounts, a: int, b: int) -> float:
    """Words of a tensor that both deltas change, if each draws its words at random."""
    words = int(counts.words.sum())
    return int(counts.changed[a].sum()) * int(counts.changed[b].sum()) / words if words else 0.0


def _expected_by_bin(counts: _OverlapCounts, a: int, b: int) -> float:
    """The same, if each delta draws its words at random within every magnitude bin."""
    used = counts.words > 0
    changed_a, changed_b = counts.changed[a][used].astype(np.float64), counts.changed[b][used]
    return float((changed_a * changed_b / counts.words[used]).sum())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
