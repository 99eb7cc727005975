"""Histogram, partition, count and apply over the words of a chunk, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import StreamError
from rlsparse_store.format.bits import StreamReader
from rlsparse_store.format.masks import decode_mask, encode_mask
from rlsparse_store.format.order import add_steps, keys, steps
from rlsparse_store.format.values import bit_length, decode_steps, encode_steps
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    TILE,
    Changes,
    CpuBackend,
    Histogram,
    Rows,
    Streams,
    check_exchange,
    rows_touched,
)
from rlsparse_store.kernels.numpy.cuts import block_ends, cheapest_cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.words import Words

__all__ = ["NumpyBackend"]

BLOCK: Final = 1 << 19
"""Words handled at a time: temporary arrays stay within a few tens of megabytes."""


def _blocks(words: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, words)) for start in range(0, words, BLOCK))


class _Classifier:
    """Finds the interval of each key: by table for narrow words, by search for wide ones."""

    def __init__(self, coding: WordCoding, bounds: NDArray[np.uint64]) -> None:
        self._coding = coding
        self._bounds = bounds
        self._table: NDArray[np.int16] | None = None
        if coding.key_bits <= 16:
            top = (1 << coding.key_bits) - 1
            ends = np.minimum(bounds, top).astype(np.int64)
            sizes = np.diff(ends, prepend=-1, append=top)
            self._table = np.repeat(np.arange(bounds.size + 1, dtype=np.int16), sizes)

    def __call__(self, words: Words) -> NDArray[np.int16]:
        """The interval of each word's key; ``len(bounds)`` for a key above the last bound."""
        key = keys(words, self._coding)
        if self._table is not None:
            return self._table[key]
        return np.searchsorted(self._bounds, key.astype(np.uint64)).astype(np.int16)


class _ContextWalker:
    """Walks a chunk and yields, per block and context, the places of its words."""

    def __init__(
        self, base: Words, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> None:
        self._base = base
        self._classify = _Classifier(coding, bounds)
        self._rows = rows
        self.number = len(bounds)

    def blocks(self) -> Iterator[tuple[slice, list[NDArray[np.int64]]]]:
        """Per block: its slice, and for each context the places within it of its words."""
        for block in _blocks(self._base.size):
            context = self._classify(self._base[block])
            member = context < self.number
            if self._rows is not None:
                member &= self._rows.live(block.start, block.stop)
            places = np.flatnonzero(member)
            context = context[places].astype(np.uint8)
            # A stable sort of bytes is a counting sort: one pass, not one per context.
            ordered = places[np.argsort(context, kind="stable")]
            ends = np.cumsum(np.bincount(context, minlength=self.number))
            yield block, np.split(ordered, ends[:-1])


def magnitude_class(step: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of |step| in a histogram."""
    magnitude = np.abs(step).view(np.uint64)
    near = magnitude.astype(np.int64) - 1
    far = 2 + bit_length(magnitude - np.uint64(3))
    return np.where(magnitude <= 3, near, np.minimum(far, MAGNITUDE_CLASSES - 1))


def _step_counts(step: NDArray[np.int64]) -> list[int]:
    """How many steps are -1, -2, -3, <= -4, 1, 2, 3, >= 4."""
    nearest = np.minimum(np.where(step < 0, -1 - step, step - 1), 3)
    return np.bincount(np.where(step < 0, 0, 4) + nearest, minlength=8).tolist()  # type: ignore[no-any-return]


class NumpyBackend(CpuBackend):
    """The definition."""

    name = "numpy"

    def changes(self, base: Words, tuned: Words, coding: WordCoding) -> Changes:
        """Count the words that differ and find the largest key among them."""
        found = Changes(0, 0)
        for block in _blocks(base.size):
            moved = base[block][base[block] != tuned[block]]
            if moved.size:
                found += Changes(moved.size, int(keys(moved, coding).max()))
        return found

    def active_rows(self, base: Words, tuned: Words, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""
        active = np.zeros(rows_touched(base.size, length, offset), np.bool_)
        for block in _blocks(base.size):
            places = np.flatnonzero(base[block] != tuned[block])
            active[(places + (offset + block.start)) // length] = True
        return Rows(active, length, offset)

    def histogram(
        self,
        base: Words,
        tuned: Words,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Rows | None = None,
        every: int = 1,
    ) -> Histogram:
        """Count words and steps by bin of the base word's key, in active rows only."""
        classify = _Classifier(coding, bins)
        words = np.zeros(bins.size, np.int64)
        magnitudes = np.zeros(bins.size * MAGNITUDE_CLASSES, np.int64)
        for block in _blocks(base.size):
            counted = (np.arange(block.start, block.stop) // TILE) % every == 0
            if rows is not None:
                counted &= rows.live(block.start, block.stop)
            before, after = base[block][counted], tuned[block][counted]
            binned = classify(before)
            words += np.bincount(binned, minlength=bins.size)
            moved = np.flatnonzero(before != after)
            classes = magnitude_class(steps(before[moved], after[moved], coding))
            cells = binned[moved].astype(np.int64) * MAGNITUDE_CLASSES + classes
            magnitudes += np.bincount(cells, minlength=magnitudes.size)
        shape = bins.size, MAGNITUDE_CLASSES
        return Histogram(words * every, magnitudes.reshape(shape) * every)

    def partition(
        self,
        base: Words,
        tuned: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""
        contexts = _ContextWalker(base, coding, bounds, rows)
        counts = [0] * contexts.number
        ranks: list[list[NDArray[np.int64]]] = [[] for _ in counts]
        moves: list[list[NDArray[np.int64]]] = [[] for _ in counts]
        for block, members in contexts.blocks():
            before, after = base[block], tuned[block]
            differs = before != after
            for number, places in enumerate(members):
                hits = np.flatnonzero(differs[places])
                ranks[number].append(hits + counts[number])
                counts[number] += places.size
                moved = places[hits]
                moves[number].append(steps(before[moved], after[moved], coding))
        joined = [np.concatenate(r) for r in ranks]
        step = np.concatenate([step for context_moves in moves for step in context_moves])
        masks = [encode_mask(r, n) for r, n in zip(joined, counts, strict=True)]
        parts = [*masks, *encode_steps(step, coding.width)]
        return Streams(
            counts=counts,
            changed=[r.size for r in joined],
            content=b"".join(parts),
            sizes=[len(part) for part in parts],
            steps=_step_counts(step),
        )

    def record(self, before: Words, after: Words) -> tuple[NDArray[np.uint8], Words]:
        """Find the words that differ, and what they were before."""
        differs = before != after
        return np.packbits(differs, bitorder="little"), before[differs]

    def exchange(self, words: Words, mask: NDArray[np.uint8], values: Words) -> None:
        """Swap the words that have a bit in the mask with the values.

        Raises:
            ValueError: The arrays do not fit together.
        """
        check_exchange(words, mask, values)
        bits = np.unpackbits(mask, bitorder="little").view(np.bool_)
        if bits[words.size :].any():
            raise ValueError("a bit of the mask is set for no word")
        chosen = bits[: words.size]
        if np.count_nonzero(chosen) != values.size:
            raise ValueError("not one value for each bit of the mask")
        words[chosen], values[:] = values, words[chosen]

    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Cut bins into contexts at the least cost."""
        return cheapest_cut(words, magnitudes)

    def block_ends(self, content: bytes | memoryview, ends: list[int]) -> list[int]:
        """Where blocks of a frame end."""
        return block_ends(content, ends)

    @staticmethod
    def _count_contexts(
        base: Words, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> list[int]:
        """Count the words of each context."""
        contexts = _ContextWalker(base, coding, bounds, rows)
        totals = [0] * contexts.number
        for _, members in contexts.blocks():
            totals = [n + places.size for n, places in zip(totals, members, strict=True)]
        return totals

    def apply(
        self,
        base: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes | memoryview,
        out: Words,
    ) -> None:
        """Decode the streams and write the tuned words to ``out``.

        Raises:
            StreamError: The streams break the format, or a row is flagged that has no change.
        """
        counts = self._count_contexts(base, coding, bounds, rows)
        for n, k in zip(counts, changed, strict=True):
            if k > n:
                msg = f"a context of {n} words is said to have {k} changed ones"
                raise StreamError(msg)
        streams = StreamReader(content)
        ranks = [decode_mask(streams, n, k) for n, k in zip(counts, changed, strict=True)]
        step = decode_steps(streams, sum(changed), coding.width)
        streams.finish()
        places = self._places(_ContextWalker(base, coding, bounds, rows), ranks)
        if rows is not None:
            changes = np.zeros(rows.active.size, np.bool_)
            changes[(places + rows.offset) // rows.length] = True
            if (rows.active & ~changes).any():
                msg = "a row without changes is flagged"
                raise StreamError(msg)
        words = add_steps(base[places], step, coding)
        if out is not base:
            out[:] = base
        out[places] = words

    @staticmethod
    def _places(contexts: _ContextWalker, ranks: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Turn ranks within contexts into places within the chunk, context by context."""
        found: list[list[NDArray[np.int64]]] = [[] for _ in ranks]
        seen = [0] * len(ranks)
        for block, members in contexts.blocks():
            for number, (rank, mine) in enumerate(zip(ranks, members, strict=True)):
                start, stop = np.searchsorted(rank, (seen[number], seen[number] + mine.size))
                found[number].append(mine[rank[start:stop] - seen[number]] + block.start)
                seen[number] += mine.size
        return np.concatenate([place for context_places in found for place in context_places])
