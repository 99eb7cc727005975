"""Minimum-cost grouping of bins into contexts and of streams into blocks.

Only the encoder does this; a decoder reads the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.kernels.cost import (
    BLOCK_COST,
    CONTEXT_COST,
    CONTEXT_LIMIT,
    EMPTY_COST,
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

_INFINITE: Final = np.int64(1) << 62


def _interval_costs(words: NDArray[np.int64], magnitudes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cost of each interval [i, j) of bins as a matrix; infinite where j <= i."""
    count = words.size
    n_sum = np.concatenate([[0], np.cumsum(words)])
    m_sum = np.concatenate([np.zeros((1, magnitudes.shape[1]), np.int64), magnitudes.cumsum(0)])
    n = np.maximum(n_sum[None, :] - n_sum[:, None], 0)
    m = np.maximum(m_sum[None, :, :] - m_sum[:, None, :], 0)
    k = m.sum(2)
    cost = mask_cost(n, k) + n_log_n(k) - n_log_n(m).sum(2)
    cost += np.where(k > 0, CONTEXT_COST, EMPTY_COST)
    empty = np.tri(count + 1, dtype=np.bool_)
    return np.where(empty, _INFINITE, cost)


def cheapest_cut(words: NDArray[np.int64], magnitudes: NDArray[np.int64]) -> tuple[list[int], int]:
    """Group bins into contexts by dynamic programming over the costs of all intervals.

    Args:
        words: Words per bin.
        magnitudes: Changed words per bin and class of |step|.

    Returns:
        The ends of the contexts and their total cost. Ties go to fewer contexts, then to earlier
        ends.
    """
    cost = _interval_costs(words, magnitudes)
    last = cost.shape[0] - 1
    best = cost[0]
    predecessors: list[NDArray[np.int64]] = []
    totals = [best[last]]
    for _ in range(1, min(CONTEXT_LIMIT, last)):
        # Both terms may be infinite; halving them keeps the sum from overflowing.
        through = np.minimum(best, _INFINITE >> 1)[:, None] + np.minimum(cost, _INFINITE >> 1)
        predecessor = through.argmin(0)
        best = through[predecessor, np.arange(last + 1)]
        predecessors.append(predecessor)
        totals.append(best[last])
    ends = [last]
    for predecessor in reversed(predecessors[: int(np.argmin(totals))]):
        ends.append(int(predecessor[ends[-1]]))
    return ends[::-1], int(min(totals))


def _histograms(content: bytes | memoryview, ends: list[int]) -> NDArray[np.int64]:
    """Count the byte values of each stream, estimated from a sample where the stream is long."""
    histograms = np.empty((len(ends), 256), np.int64)
    streams = np.split(np.frombuffer(content, np.uint8), ends[:-1])
    for histogram, stream in zip(histograms, streams, strict=True):
        stride = max(1, stream.size // SAMPLED_BYTES)
        histogram[:] = np.bincount(stream[::stride], minlength=256) * stride
    return histograms


def _block_costs(histograms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Estimate the size of a zstd block for each histogram."""
    size = histograms.sum(1)
    symbols = np.count_nonzero(histograms, 1)
    ideal = n_log_n(size) - n_log_n(histograms).sum(1)
    # Huffman codes take at least one bit per byte, and about 1 % more than the entropy.
    coded = np.maximum(ideal + ideal // 100, size * ONE_BIT) + TABLE_COST + symbols * SYMBOL_COST
    plain = np.minimum(coded, size * 8 * ONE_BIT)
    return BLOCK_COST + np.where(symbols <= 1, 8 * ONE_BIT, plain)


def block_ends(content: bytes | memoryview, ends: list[int]) -> list[int]:
    """Choose the ends of blocks: a block ends where two blocks cost less than one."""
    if len(ends) < 2:
        return ends
    histograms = _histograms(content, ends)
    single_costs = _block_costs(histograms)
    pair_costs = _block_costs(histograms[:-1] + histograms[1:])
    chosen: list[int] = []
    block, cost, merged_cost = histograms[0], single_costs[0], pair_costs[:1]
    for i in range(1, len(ends)):
        split = bool(cost + single_costs[i] < merged_cost[0])
        if split:
            chosen.append(ends[i - 1])
        block = histograms[i] if split else block + histograms[i]
        cost = single_costs[i] if split else merged_cost[0]
        if i + 1 < len(ends):
            # A block of one stream and the next stream are a pair, whose cost is known.
            merged = block + histograms[i + 1]
            merged_cost = pair_costs[i:] if split else _block_costs(merged[None])
    return [*chosen, ends[-1]]
