"""What is counted of a tensor: the sums of its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from rlsparse_store.analysis.values import CASTS, cast_differs, is_numeric, values_of
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.format.order import steps
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import Block, Pair, SharedTensor
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = ["RELATIVE", "STEP_EDGES", "TOLERANCES", "Measures", "measure_tensor", "step_labels"]

TOLERANCES: Final = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""Absolute differences up to which values count as equal; the papers use 1e-5."""

RELATIVE: Final = 1e-3
"""Of the larger magnitude: for bfloat16 the same as equal bits."""

STEP_EDGES: Final = (1, 2, 3, 4, 8, 16, 32, 64, 128, 1024)
"""Where classes of |step| begin."""


_STEP_CLASS: Final = np.searchsorted(STEP_EDGES, np.arange(STEP_EDGES[-1] + 1), side="right") - 1


def step_labels() -> list[str]:
    """The classes of steps, from the farthest down to the farthest up."""
    ends = [*(edge - 1 for edge in STEP_EDGES[1:]), None]
    classes = list(zip(STEP_EDGES, ends, strict=True))
    return [_step_label("-", *c) for c in classes[::-1]] + [_step_label("+", *c) for c in classes]


def _step_label(sign: str, start: int, end: int | None) -> str:
    if end is None:
        return f"<=-{start}" if sign == "-" else f">=+{start}"
    return f"{sign}{start}" if start == end else f"{sign}{start}..{sign}{end}"


@dataclass(slots=True)
class Measures:
    """Sums over words. Those of several tensors add up.

    Attributes:
        words: Words compared.
        changed: Words whose bits differ.
        within: Words that differ by at most each of :data:`TOLERANCES`, equal ones included.
        within_relative: Words that differ by at most 1e-3 of the larger magnitude.
        sign_flips: Words whose sign differs.
        exponent_moves: Changed words whose exponent differs.
        not_numbers: NaNs of the tuned side among changed words.
        negative_zeros: Negative zeros of the tuned side among changed words.
        steps: Changed words by class of step, as :func:`step_labels` has them.
        square_delta: Sum of squared differences of finite values.
        absolute_delta: Sum of their magnitudes.
        largest_delta: The largest of them.
        square_base: Sum of the base's squared finite values.
        cast_changed: Words that would still differ after casting to each of ``CASTS``.
        largest_gap: Most words between two changes of a tensor, the first one's place included.
        by_exponent: Words and changed words by the base's exponent, ``[2, exponents]``.
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
        """Add the sums of other words."""
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
            mine = self.by_exponent
            is_alike = mine is not None and mine.shape == other.by_exponent.shape
            # Exponents of different dtypes do not add up: those of most words are kept.
            if mine is None or (not is_alike and mine.sum() < other.by_exponent.sum()):
                self.by_exponent = other.by_exponent
            elif is_alike:
                self.by_exponent = mine + other.by_exponent
        return self


@dataclass(slots=True)
class Lines:
    """Changed words by row and by column of a matrix.

    Attributes:
        rows: Changed words of each row.
        columns: Changed words of each column.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def measure_tensor(pair: Pair, tensor: SharedTensor) -> tuple[Measures, Lines | None]:
    """Measure one tensor, block by block.

    Returns:
        Its sums, and its rows and columns if it has at least two dimensions.
    """
    total = Measures()
    lines = _lines(tensor)
    width = 0 if lines is None else lines.columns.size
    last = -1
    for block in pair.blocks(tensor.name):
        places = np.flatnonzero(block.base != block.tuned)
        total += _measure(block, places, tensor.dtype)
        if places.size:
            gap = int(np.diff(places, prepend=last - block.first).max()) - 1
            total.largest_gap = max(total.largest_gap, gap)
            last = block.first + int(places[-1])
        if lines is not None and places.size:
            row, column = np.divmod(places + block.first, width)
            first = int(row[0])
            counts = np.bincount(row - first)
            lines.rows[first : first + counts.size] += counts
            lines.columns += np.bincount(column, minlength=width)
    return total, lines


def _lines(tensor: SharedTensor) -> Lines | None:
    if len(tensor.shape) < 2 or tensor.words == 0:
        return None
    all_words = tensor.words + tensor.tail
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    if rows == 0 or all_words % rows:
        return None
    width = all_words // rows
    return Lines(np.zeros(-(-tensor.words // width), np.int64), np.zeros(width, np.int64))


def _measure(block: Block, places: NDArray[np.int64], dtype: Dtype) -> Measures:
    found = Measures(words=block.base.size, changed=places.size)
    equal = block.base.size - places.size
    found.within += equal
    found.within_relative = equal
    if dtype.mantissa_bits is not None:
        found.by_exponent = _by_exponent(block, dtype)
    before, after = block.base[places], block.tuned[places]
    found.steps = _step_classes(steps(before, after, dtype.coding))
    different = before ^ after
    magnitude = before.dtype.type((1 << (dtype.coding.width - 1)) - 1)
    found.sign_flips = int(np.count_nonzero(different > magnitude))
    if dtype.mantissa_bits is not None:
        fraction = before.dtype.type((1 << dtype.mantissa_bits) - 1)
        found.exponent_moves = int(np.count_nonzero((different & magnitude) > fraction))
    if is_numeric(dtype):
        # Infinities and NaNs are among the words of many checkpoints, and are counted apart.
        with np.errstate(all="ignore"):
            _add_values(found, block.base, before, after, dtype)
    return found


def _by_exponent(block: Block, dtype: Dtype) -> NDArray[np.int64]:
    """Words and changed words by exponent of the base."""
    assert dtype.mantissa_bits is not None  # noqa: S101 - the caller asked
    bins = key_bins(dtype.coding, dtype.mantissa_bits)
    histogram = get_backend().histogram(block.base, block.tuned, dtype.coding, bins)
    both = np.stack([histogram.words, histogram.magnitudes.sum(1)])
    exponents = 1 << (dtype.coding.key_bits - dtype.mantissa_bits)
    # Narrow words have a bin per key, others two per exponent.
    summed: NDArray[np.int64] = both.reshape(2, exponents, -1).sum(2)
    return summed


def _step_classes(step: NDArray[np.int64]) -> NDArray[np.int64]:
    magnitude = np.abs(step).view(np.uint64)
    place = _STEP_CLASS[np.minimum(magnitude, np.uint64(STEP_EDGES[-1])).view(np.int64)]
    signed = np.where(step < 0, len(STEP_EDGES) - 1 - place, len(STEP_EDGES) + place)
    return np.bincount(signed, minlength=2 * len(STEP_EDGES))


def _add_values(found: Measures, base: Words, before: Words, after: Words, dtype: Dtype) -> None:
    """Add what is measured of values rather than of words."""
    found.square_base = _squares(values_of(base, dtype))
    old, new = values_of(before, dtype), values_of(after, dtype)
    delta = np.abs(new.astype(np.float64) - old.astype(np.float64))
    # Integers that differ are apart by 1 at least, which float64 does not tell of large ones.
    for number, tolerance in enumerate(TOLERANCES if dtype.mantissa_bits is not None else ()):
        found.within[number] += np.count_nonzero(delta <= tolerance)
    largest = np.maximum(np.abs(old), np.abs(new)).astype(np.float64)
    found.within_relative += int(np.count_nonzero(delta <= RELATIVE * largest))
    finite = delta[np.isfinite(delta)]
    # Not np.dot, whose library would start threads of its own.
    found.square_delta = float(np.einsum("i,i->", finite, finite))
    found.absolute_delta = float(finite.sum())
    found.largest_delta = float(finite.max(initial=0.0))
    found.not_numbers = int(np.count_nonzero(np.isnan(new)))
    found.negative_zeros = int(np.count_nonzero((new == 0) & np.signbit(new)))
    for number, code in enumerate(CASTS):
        found.cast_changed[number] = cast_differs(before, after, dtype, code)


def _squares(values: NDArray[np.floating[Any]]) -> float:
    """The sum of squares of finite values: short sums in their own precision, then in float64."""
    full = values.size // 1024 * 1024
    rows = values[:full].reshape(-1, 1024)
    parts = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    total = float(parts.sum()) + float(np.square(values[full:], dtype=np.float64).sum())
    if np.isfinite(total):
        return total
    finite = values[np.isfinite(values)].astype(np.float64)
    return float(np.einsum("i,i->", finite, finite))
