"""Choice of a chunk's contexts (``specs/rationale.md``).

A histogram over bins of the base key gives the cost of mask and steps for each interval of keys;
dynamic programming finds the contexts of minimum cost. Only the encoder does this: a decoder reads
the bounds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.format.dtypes import OrderMap, WordCoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.kernels.interface import CpuBackend, Histogram

__all__ = ["SINGLE_CONTEXT_CHANGES", "choose_bounds", "key_bins", "needs_histogram", "single_bound"]

SINGLE_CONTEXT_CHANGES: Final = 48
"""A chunk with this many changes or fewer gets one context."""


@cache
def key_bins(coding: WordCoding, mantissa_bits: int | None) -> NDArray[np.uint64]:
    """Return the bins of a histogram: ascending inclusive upper keys up to the largest key.

    Narrow words have one bin per key and wide integers one per bit length. Floats have two per
    exponent: mantissa zero, whose distance to the next lower value is half as large, and the rest.
    """
    top = (1 << coding.key_bits) - 1
    if coding.width <= 8:
        return np.arange(top + 1, dtype=np.uint64)
    if coding.order is OrderMap.SIGN_MAGNITUDE and mantissa_bits is not None:
        powers = np.arange(1 << (coding.key_bits - mantissa_bits), dtype=np.uint64)
        first = powers << np.uint64(mantissa_bits)
        last = first + np.uint64((1 << mantissa_bits) - 1)
        return np.stack([first, last], axis=1).ravel()
    return np.array([(1 << bits) - 1 for bits in range(coding.key_bits + 1)], np.uint64)


def needs_histogram(changed: int) -> bool:
    """Return whether a chunk with this many changes may get more than one context."""
    return changed > SINGLE_CONTEXT_CHANGES


def single_bound(bins: NDArray[np.uint64], top_key: int) -> NDArray[np.uint64]:
    """Return the bound of a chunk's only context.

    Args:
        bins: Inclusive upper keys of the bins.
        top_key: The largest key of a changed word.
    """
    last = int(bins.searchsorted(np.uint64(top_key)))
    return bins[last : last + 1]


def choose_bounds(
    backend: CpuBackend, histogram: Histogram, bins: NDArray[np.uint64], top_key: int
) -> tuple[NDArray[np.uint64], int]:
    """Choose the contexts of a chunk that has a changed word.

    Args:
        backend: Finds the cheapest grouping of bins.
        histogram: Counts per bin, possibly estimates.
        bins: Inclusive upper keys of the bins.
        top_key: The largest key of a changed word, which the contexts must cover.

    Returns:
        The inclusive upper keys of the contexts, ascending, and the estimated cost of masks and
        steps.
    """
    last = int(bins.searchsorted(np.uint64(top_key)))
    is_used = histogram.words[: last + 1] > 0
    is_used[last] = True
    used = is_used.nonzero()[0]
    words, magnitudes = histogram.words[used], histogram.magnitudes[used]
    if magnitudes.sum() <= SINGLE_CONTEXT_CHANGES:
        words, magnitudes = words.sum(keepdims=True), magnitudes.sum(0, keepdims=True)
        used = used[-1:]
    elif used.size > 2 * _MAX_EXPONENTS:
        words, magnitudes, used = _merge_bins(words, magnitudes, used)
    ends, cost = backend.cheapest_cut(words, magnitudes)
    return bins[used[[end - 1 for end in ends]]], cost


_MAX_EXPONENTS: Final = 64
"""Exponents whose bins, two each, the search handles without merging."""


def _merge_bins(
    words: NDArray[np.int64], magnitudes: NDArray[np.int64], used: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Merge adjacent bins into at most 128 with about equal numbers of changes."""
    changed = magnitudes.sum(1)
    share = np.cumsum(changed) * (2 * _MAX_EXPONENTS - 1) // max(int(changed.sum()), 1)
    ends = np.flatnonzero(np.diff(share, append=-1)) + 1
    starts = np.concatenate([[0], ends[:-1]])
    return (
        np.add.reduceat(words, starts),
        np.add.reduceat(magnitudes, starts),
        used[ends - 1],
    )
