"""Counts and sums of one tensor, accumulated block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from rlsparse_store.analysis.numeric import CASTS, as_floats, count_cast_changes, is_numeric
from rlsparse_store.analysis.selection import flags, positions
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.format.order import keys, steps
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import ChangedWords

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import Block, Pair, SharedTensor
    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = [
    "TOLERANCES",
    "LineCounts",
    "Measures",
    "count_exponents",
    "count_few_exponents",
    "measure_tensor",
    "num_exponents",
    "step_labels",
]

TOLERANCES: Final = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""Largest absolute differences that count as unchanged; the papers use 1e-5."""

RELATIVE: Final = 1e-3
"""Relative to the larger magnitude. For bfloat16 it amounts to equal bits."""

STEP_EDGES: Final = (1, 2, 3, 4, 8, 16, 32, 64, 128, 1024)
"""Lower bounds of the classes of step sizes."""

_STEP_CLASS: Final = np.searchsorted(
    [*(-edge + 1 for edge in STEP_EDGES[::-1]), *STEP_EDGES[1:]],
    np.delete(np.arange(-STEP_EDGES[-1], STEP_EDGES[-1] + 1), STEP_EDGES[-1]),
    side="right",
)
"""Class of each step from the largest negative to the largest positive edge, without 0."""


def step_labels() -> list[str]:
    """Labels of the step classes, from the largest negative to the largest positive steps."""
    ends = [*(edge - 1 for edge in STEP_EDGES[1:]), None]
    classes = list(zip(STEP_EDGES, ends, strict=True))
    return [_step_label("-", *c) for c in classes[::-1]] + [_step_label("+", *c) for c in classes]


def _step_label(sign: str, start: int, end: int | None) -> str:
    if end is None:
        return f"<=-{start}" if sign == "-" else f">=+{start}"
    return f"{sign}{start}" if start == end else f"{sign}{start}..{sign}{end}"


@dataclass(slots=True, repr=False)
class Measures(SummaryRepr):
    """Counts and sums over words. ``+=`` adds those of another tensor.

    Attributes:
        words: Words compared.
        changed: Words whose bits differ.
        within: Words that differ by at most each of :data:`TOLERANCES`, equal words included.
        within_relative: Words that differ by at most 1e-3 of the larger magnitude.
        sign_flips: Words whose sign differs.
        exponent_moves: Words whose exponent differs.
        not_numbers: Changed words that are NaN in the tuned tensor.
        negative_zeros: Changed words that are -0 in the tuned tensor.
        steps: Changed words by step class, in the order of :func:`step_labels`.
        square_delta: Sum of squared differences, over finite differences.
        absolute_delta: Sum of absolute differences, over finite differences.
        largest_delta: Largest absolute difference, over finite differences.
        square_base: Sum of squared values of the base, over finite values.
        cast_changed: Words that still differ after casting both sides to each of ``CASTS``.
        largest_gap: Longest run of unchanged words before a changed word of a tensor.
        by_exponent: Words and changed words by exponent of the base, shape ``[2, exponents]``.
    """

    words: int = 0
    changed: int = 0
    within: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(TOLERANCES), np.int64))
    within_relative: int = 0
    sign_flips: int = 0
    exponent_moves: int = 0
    not_numbers: int = 0
    negative_zeros: int = 0
    steps: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(2 * len(STEP_EDGES), np.int64)
    )
    square_delta: float = 0.0
    absolute_delta: float = 0.0
    largest_delta: float = 0.0
    square_base: float = 0.0
    cast_changed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CASTS), np.int64))
    largest_gap: int = 0
    by_exponent: NDArray[np.int64] | None = None

    def __iadd__(self, other: Measures) -> Self:
        """Add the counts and sums of other words."""
        for name in ("words", "changed", "within_relative", "sign_flips", "exponent_moves"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("not_numbers", "negative_zeros", "square_delta", "absolute_delta"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.square_base += other.square_base
        self.largest_gap = max(self.largest_gap, other.largest_gap)
        self.largest_delta = max(self.largest_delta, other.largest_delta)
        self.within = self.within + other.within
        self.steps = self.steps + other.steps
        self.cast_changed = self.cast_changed + other.cast_changed
        if other.by_exponent is not None:
            own = self.by_exponent
            same_shape = own is not None and own.shape == other.by_exponent.shape
            # Exponents of two dtypes do not add up: keep the table with more words.
            if own is None or (not same_shape and own.sum() < other.by_exponent.sum()):
                self.by_exponent = other.by_exponent
            elif same_shape:
                self.by_exponent = own + other.by_exponent
        return self

    def _summary(self) -> Rows:
        yield "words", self.words
        yield "changed", self.changed
        yield "largest_delta", self.largest_delta
        yield "sign_flips", self.sign_flips
        yield "exponent_moves", self.exponent_moves
        yield "largest_gap", self.largest_gap


@dataclass(slots=True)
class LineCounts:
    """Changed words by row and by column of a matrix.

    Attributes:
        rows: Changed words of each row.
        columns: Changed words of each column.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def measure_tensor(pair: Pair, tensor: SharedTensor) -> tuple[Measures, LineCounts | None]:
    """Measure one tensor, block by block.

    Args:
        pair: The pair.
        tensor: One of its tensors.

    Returns:
        The counts and sums, and the counts by row and column if there are at least two dimensions.
    """
    total = Measures()
    lines = _empty_lines(tensor)
    width = 0 if lines is None else lines.columns.size
    last = -1
    for block in pair.blocks(tensor.name):
        changed = get_backend().changed_words(block.base, block.tuned, tensor.dtype.coding)
        total += _measure(block, changed, tensor.dtype)
        if not changed.count:
            continue
        indices = positions(flags(changed, block.base.size)) + block.first
        total.largest_gap = max(total.largest_gap, int(np.diff(indices, prepend=last).max()) - 1)
        last = int(indices[-1])
        if lines is not None:
            row, column = np.divmod(indices, width)
            first = int(row[0])
            counts = np.bincount(row - first)
            lines.rows[first : first + counts.size] += counts
            lines.columns += np.bincount(column, minlength=width)
    return total, lines


def _empty_lines(tensor: SharedTensor) -> LineCounts | None:
    """Zero counts for the rows and columns of a matrix; leading dimensions are rows."""
    if len(tensor.shape) < 2 or tensor.words == 0:
        return None
    all_words = tensor.words + tensor.tail
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    if rows == 0 or all_words % rows:
        return None
    width = all_words // rows
    return LineCounts(np.zeros(-(-tensor.words // width), np.int64), np.zeros(width, np.int64))


def _measure(block: Block, changed: ChangedWords, dtype: Dtype) -> Measures:
    """Measure a block."""
    before, after = changed.before, changed.after
    unchanged = block.base.size - changed.count
    measures = Measures(words=block.base.size, changed=changed.count)
    measures.within += unchanged
    measures.within_relative = unchanged
    if dtype.mantissa_bits is not None:
        counts = count_exponents(block.base, dtype), count_few_exponents(before, dtype)
        measures.by_exponent = np.stack(counts)
    measures.steps = _count_step_classes(steps(before, after, dtype.coding))
    xor = before ^ after
    magnitude = before.dtype.type((1 << (dtype.coding.width - 1)) - 1)
    measures.sign_flips = int(np.count_nonzero(xor > magnitude))
    if dtype.mantissa_bits is not None:
        fraction = before.dtype.type((1 << dtype.mantissa_bits) - 1)
        measures.exponent_moves = int(np.count_nonzero((xor & magnitude) > fraction))
    if is_numeric(dtype):
        # Many checkpoints hold infinities and NaNs; the sums leave them out.
        with np.errstate(all="ignore"):
            _add_values(measures, block.base, before, after, dtype)
    return measures


def num_exponents(dtype: Dtype) -> int:
    """Number of exponents of a dtype; 1 if it has none."""
    return 1 if dtype.mantissa_bits is None else 1 << (dtype.coding.key_bits - dtype.mantissa_bits)


def count_exponents(words: Words, dtype: Dtype) -> NDArray[np.int64]:
    """Count many words by exponent; all in one bin if the dtype has no exponents."""
    if dtype.mantissa_bits is None:
        return np.array([words.size])
    bins = key_bins(dtype.coding, dtype.mantissa_bits)
    unchanged = ChangedWords.none(words)
    counts = get_backend().histogram(words, unchanged, dtype.coding, bins, None, 1).words
    # Narrow words have one bin per key, others two per exponent.
    summed: NDArray[np.int64] = counts.reshape(num_exponents(dtype), -1).sum(1)
    return summed


def count_few_exponents(words: Words, dtype: Dtype) -> NDArray[np.int64]:
    """Count words by exponent, as :func:`count_exponents` does: faster for few words."""
    if dtype.mantissa_bits is None:
        return np.array([words.size])
    exponents = keys(words, dtype.coding) >> words.dtype.type(dtype.mantissa_bits)
    # bincount does not accept 64-bit unsigned words.
    return np.bincount(exponents.astype(np.int64), minlength=num_exponents(dtype))


def _count_step_classes(step: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count steps by class. No step is 0."""
    edge = STEP_EDGES[-1]
    counts = np.bincount(np.clip(step, -edge, edge) + edge, minlength=2 * edge + 1)
    by_class = np.bincount(_STEP_CLASS, np.delete(counts, edge), minlength=2 * len(STEP_EDGES))
    return by_class.astype(np.int64)


def _add_values(measures: Measures, base: Words, before: Words, after: Words, dtype: Dtype) -> None:
    """Add the sums of values: of the whole base block, and of its changed words."""
    measures.square_base = _sum_of_squares(as_floats(base, dtype))
    old, new = as_floats(before, dtype), as_floats(after, dtype)
    delta = np.abs(new.astype(np.float64) - old.astype(np.float64))
    # Integers that differ do so by at least 1, but float64 cannot tell large ones apart.
    for i, tolerance in enumerate(TOLERANCES if dtype.mantissa_bits is not None else ()):
        measures.within[i] += np.count_nonzero(delta <= tolerance)
    larger = np.maximum(np.abs(old), np.abs(new)).astype(np.float64)
    measures.within_relative += int(np.count_nonzero(delta <= RELATIVE * larger))
    finite = delta[np.isfinite(delta)]
    # einsum, since np.dot starts BLAS threads.
    measures.square_delta = float(np.einsum("i,i->", finite, finite))
    measures.absolute_delta = float(finite.sum())
    measures.largest_delta = float(finite.max(initial=0.0))
    measures.not_numbers = int(np.count_nonzero(np.isnan(new)))
    measures.negative_zeros = int(np.count_nonzero((new == 0) & np.signbit(new)))
    for i, code in enumerate(CASTS):
        measures.cast_changed[i] = count_cast_changes(before, after, dtype, code)


def _sum_of_squares(values: NDArray[np.floating[Any]]) -> float:
    """Sum of squares of finite values: rows of 1024 in their own precision, then float64."""
    full = values.size // 1024 * 1024
    rows = values[:full].reshape(-1, 1024)
    parts = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    total = float(parts.sum()) + float(np.square(values[full:], dtype=np.float64).sum())
    if np.isfinite(total):
        return total
    finite = values[np.isfinite(values)].astype(np.float64)
    return float(np.einsum("i,i->", finite, finite))
