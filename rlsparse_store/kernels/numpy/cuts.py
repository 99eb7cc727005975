"""Cutting bins into contexts, and streams into blocks, by what each would cost.

Only the encoder does this; a decoder reads what was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.kernels.cost import (
    BLOCK_COST,
    CONTEXT_COST,
    EMPTY_COST,
    MOST_CONTEXTS,
    ONE_BIT,
    SAMPLED_BYTES,
    SYMBOL_COST,
    TABLE_COST,
    mask_cost,
    n_log_n,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["block_ends", "cheapest_cut"]

_IMPOSSIBLE: Final = np.int64(1) << 62


def _interval_costs(words: NDArray[np.int64], magnitudes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cost of every interval [i, j) of bins, as a matrix; impossible where j <= i."""
    count = words.size
    n_sum = np.concatenate([[0], np.cumsum(words)])
    m_sum = np.concatenate([np.zeros((1, magnitudes.shape[1]), np.int64), magnitudes.cumsum(0)])
    n = np.maximum(n_sum[None, :] - n_sum[:, None], 0)
    m = np.maximum(m_sum[None, :, :] - m_sum[:, None, :], 0)
    k = m.sum(2)
    cost = mask_cost(n, k) + n_log_n(k) - n_log_n(m).sum(2)
    cost += np.where(k > 0, CONTEXT_COST, EMPTY_COST)
    empty = np.tri(count + 1, dtype=np.bool_)
    return np.where(empty, _IMPOSSIBLE, cost)


def cheapest_cut(words: NDArray[np.int64], magnitudes: NDArray[np.int64]) -> tuple[list[int], int]:
    """Cut bins into contexts by dynamic programming over the cost of every interval.

    Args:
        words: Words per bin.
        magnitudes: Changed words per bin and class of |step|.

    Returns:
        The ends of the intervals of the cheapest cut, and its cost. Ties go to fewer intervals,
        then to earlier cuts.
    """
    cost = _interval_costs(words, magnitudes)
    last = cost.shape[0] - 1
    best = cost[0]
    came_from: list[NDArray[np.int64]] = []
    totals = [best[last]]
    for _ in range(1, min(MOST_CONTEXTS, last)):
        # Both terms may be "impossible"; halving the sum's range keeps it from overflowing.
        through = np.minimum(best, _IMPOSSIBLE >> 1)[:, None] + np.minimum(cost, _IMPOSSIBLE >> 1)
        source = through.argmin(0)
        best = through[source, np.arange(last + 1)]
        came_from.append(source)
        totals.append(best[last])
    ends = [last]
    for source in reversed(came_from[: int(np.argmin(totals))]):
        ends.append(int(source[ends[-1]]))
    return ends[::-1], int(min(totals))


def _histograms(content: bytes | memoryview, ends: list[int]) -> NDArray[np.int64]:
    """How often each byte value occurs in each stream, estimated where it is long."""
    histograms = np.empty((len(ends), 256), np.int64)
    streams = np.split(np.frombuffer(content, np.uint8), ends[:-1])
    for histogram, stream in zip(histograms, streams, strict=True):
        every = max(1, stream.size // SAMPLED_BYTES)
        histogram[:] = np.bincount(stream[::every], minlength=256) * every
    return histograms


def _block_costs(histograms: NDArray[np.int64]) -> NDArray[np.int64]:
    """About what zstd makes of bytes with each histogram as one block of its own."""
    size = histograms.sum(1)
    symbols = np.count_nonzero(histograms, 1)
    ideal = n_log_n(size) - n_log_n(histograms).sum(1)
    # Huffman spends at least one bit per byte, and about a percent more than the entropy.
    coded = np.maximum(ideal + ideal // 100, size * ONE_BIT) + TABLE_COST + symbols * SYMBOL_COST
    plain = np.minimum(coded, size * 8 * ONE_BIT)
    return BLOCK_COST + np.where(symbols <= 1, 8 * ONE_BIT, plain)


def block_ends(content: bytes | memoryview, ends: list[int]) -> list[int]:
    """Which streams end a block: where two blocks cost less than one for both."""
    if len(ends) < 2:
        return ends
    histograms = _histograms(content, ends)
    alone = _block_costs(histograms)
    with_next = _block_costs(histograms[:-1] + histograms[1:])
    found: list[int] = []
    block, cost, together = histograms[0], alone[0], with_next[:1]
    for number in range(1, len(ends)):
        apart = bool(cost + alone[number] < together[0])
        if apart:
            found.append(ends[number - 1])
        block = histograms[number] if apart else block + histograms[number]
        cost = alone[number] if apart else together[0]
        if number + 1 < len(ends):
            # Only a block of several streams has not been tried with the next one yet.
            joined = block + histograms[number + 1]
            together = with_next[number:] if apart else _block_costs(joined[None])
    return [*found, ends[-1]]
