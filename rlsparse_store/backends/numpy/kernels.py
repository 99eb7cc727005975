"""Histogram, partition, count and apply over the words of a chunk, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.backends.interface import MAGNITUDE_CLASSES, Histogram, Rows, Streams, Words
from rlsparse_store.backends.numpy.bits import Cursor
from rlsparse_store.backends.numpy.masks import decode_mask, encode_mask
from rlsparse_store.backends.numpy.values import bit_length, decode_steps, encode_steps
from rlsparse_store.backends.numpy.words import add_steps, keys, steps
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.dtypes import WordCoding

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


class _Contexts:
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


class NumpyBackend:
    """The definition."""

    name = "numpy"

    def count_changed(self, base: Words, tuned: Words) -> int:
        """Count the words that differ."""
        return int(np.count_nonzero(base != tuned))

    def active_rows(self, base: Words, tuned: Words, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""
        active = np.zeros(-(-(offset + base.size) // length), np.bool_)
        for block in _blocks(base.size):
            places = np.flatnonzero(base[block] != tuned[block])
            active[(places + (offset + block.start)) // length] = True
        return Rows(active, length, offset)

    def histogram(
        self, base: Words, tuned: Words, coding: WordCoding, bins: NDArray[np.uint64]
    ) -> Histogram:
        """Count words and steps by bin of the base word's key."""
        classify = _Classifier(coding, bins)
        words = np.zeros(bins.size, np.int64)
        magnitudes = np.zeros(bins.size * MAGNITUDE_CLASSES, np.int64)
        for block in _blocks(base.size):
            before, after = base[block], tuned[block]
            binned = classify(before)
            words += np.bincount(binned, minlength=bins.size)
            moved = np.flatnonzero(before != after)
            classes = magnitude_class(steps(before[moved], after[moved], coding))
            cells = binned[moved].astype(np.int64) * MAGNITUDE_CLASSES + classes
            magnitudes += np.bincount(cells, minlength=magnitudes.size)
        return Histogram(words, magnitudes.reshape(bins.size, MAGNITUDE_CLASSES))

    def partition(
        self,
        base: Words,
        tuned: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""
        contexts = _Contexts(base, coding, bounds, rows)
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
        signs, classes, exponents, low_bits = encode_steps(
            np.concatenate([step for context_moves in moves for step in context_moves]),
            coding.width,
        )
        return Streams(
            counts=counts,
            changed=[r.size for r in joined],
            masks=[encode_mask(r, n) for r, n in zip(joined, counts, strict=True)],
            signs=signs,
            classes=classes,
            exponents=exponents,
            low_bits=low_bits,
        )

    def count_contexts(
        self, base: Words, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> list[int]:
        """Count the words of each context."""
        contexts = _Contexts(base, coding, bounds, rows)
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
        content: bytes,
    ) -> Words:
        """Decode the streams and return the tuned words.

        Raises:
            StreamError: The streams break the format.
        """
        counts = self.count_contexts(base, coding, bounds, rows)
        for n, k in zip(counts, changed, strict=True):
            if k > n:
                msg = f"a context of {n} words is said to have {k} changed ones"
                raise StreamError(msg)
        streams = Cursor(content)
        ranks = [decode_mask(streams, n, k) for n, k in zip(counts, changed, strict=True)]
        step = decode_steps(streams, sum(changed), coding.width)
        streams.finish()
        places = self._places(_Contexts(base, coding, bounds, rows), ranks)
        tuned = base.copy()
        tuned[places] = add_steps(base[places], step, coding)
        return tuned

    @staticmethod
    def _places(contexts: _Contexts, ranks: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Turn ranks within contexts into places within the chunk, context by context."""
        found: list[list[NDArray[np.int64]]] = [[] for _ in ranks]
        seen = [0] * len(ranks)
        for block, members in contexts.blocks():
            for number, (rank, mine) in enumerate(zip(ranks, members, strict=True)):
                start, stop = np.searchsorted(rank, (seen[number], seen[number] + mine.size))
                found[number].append(mine[rank[start:stop] - seen[number]] + block.start)
                seen[number] += mine.size
        return np.concatenate([place for context_places in found for place in context_places])
