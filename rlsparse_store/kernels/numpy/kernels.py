"""The loops over the words of a chunk, in NumPy, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import StreamError
from rlsparse_store.format.bits import StreamReader
from rlsparse_store.format.digests import leaf_hashes
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
    row_count,
)
from rlsparse_store.kernels.numpy.cuts import block_ends, cheapest_cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import ChangedWords, ChangeList

__all__ = ["NumpyBackend"]

BLOCK: Final = 1 << 19
"""Words per block. It limits temporary arrays to a few tens of megabytes."""


def _blocks(words: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, words)) for start in range(0, words, BLOCK))


class _Classifier:
    """Maps keys to contexts: by a table for narrow words, by binary search for wide ones."""

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
        """Return the context of each word; ``len(bounds)`` for a key above the last bound."""
        key = keys(words, self._coding)
        if self._table is not None:
            return self._table[key]
        return np.searchsorted(self._bounds, key.astype(np.uint64)).astype(np.int16)


class _ContextWalker:
    """Iterates over the words of a chunk by block and context."""

    def __init__(
        self, base: Words, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> None:
        self._base = base
        self._classify = _Classifier(coding, bounds)
        self._rows = rows
        self.count = len(bounds)

    def blocks(self) -> Iterator[tuple[slice, list[NDArray[np.int64]]]]:
        """Yield each block's slice and, for each context, the indices of its words in the block."""
        for block in _blocks(self._base.size):
            context = self._classify(self._base[block])
            member = context < self.count
            if self._rows is not None:
                member &= self._rows.word_flags(block.start, block.stop)
            indices = np.flatnonzero(member)
            context = context[indices].astype(np.uint8)
            # NumPy sorts bytes by counting: one pass, not one per context.
            ordered = indices[np.argsort(context, kind="stable")]
            ends = np.cumsum(np.bincount(context, minlength=self.count))
            yield block, np.split(ordered, ends[:-1])


def magnitude_class(step: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of |step| in a histogram."""
    magnitude = np.abs(step).view(np.uint64)
    near = magnitude.astype(np.int64) - 1
    far = 2 + bit_length(magnitude - np.uint64(3))
    return np.where(magnitude <= 3, near, np.minimum(far, MAGNITUDE_CLASSES - 1))


def _step_counts(step: NDArray[np.int64]) -> list[int]:
    """Count the steps -1, -2, -3, <= -4, 1, 2, 3, >= 4."""
    nearest = np.minimum(np.where(step < 0, -1 - step, step - 1), 3)
    return np.bincount(np.where(step < 0, 0, 4) + nearest, minlength=8).tolist()  # type: ignore[no-any-return]


def _is_changed(changed: ChangedWords, words: int) -> NDArray[np.bool_]:
    """Return for each of ``words`` words whether it changed."""
    return np.unpackbits(changed.mask, count=words, bitorder="little").view(np.bool_)


def _tuned(base: Words, changed: ChangedWords) -> Words:
    """Return the tuned words."""
    tuned = base.copy()
    tuned[_is_changed(changed, base.size)] = changed.after
    return tuned


class NumpyBackend(CpuBackend):
    """The definition of the loops."""

    name = "numpy"

    def compare(self, base: Words, tuned: Words, coding: WordCoding, into: ChangeList) -> Changes:
        """Append the changed words to a list, and summarize them."""
        is_changed = base != tuned
        before, after = base[is_changed], tuned[is_changed]
        mask, old, new = into.reserve(base.size, base.dtype)
        mask[:] = np.packbits(is_changed, bitorder="little")
        old[: before.size], new[: after.size] = before, after
        top_key = int(keys(before, coding).max()) if before.size else 0
        return into.add(base.size, Changes(before.size, top_key))

    def active_rows(self, changed: ChangedWords, words: int, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""
        active = np.zeros(row_count(words, length, offset), np.bool_)
        active[(np.flatnonzero(_is_changed(changed, words)) + offset) // length] = True
        return Rows(active, length, offset)

    def histogram(
        self,
        base: Words,
        changed: ChangedWords,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Rows | None,
        stride: int,
    ) -> Histogram:
        """Count words and steps by bin of the base word's key, in active rows only."""
        tuned = _tuned(base, changed)
        classify = _Classifier(coding, bins)
        words = np.zeros(bins.size, np.int64)
        magnitudes = np.zeros(bins.size * MAGNITUDE_CLASSES, np.int64)
        for block in _blocks(base.size):
            selected = (np.arange(block.start, block.stop) // TILE) % stride == 0
            if rows is not None:
                selected &= rows.word_flags(block.start, block.stop)
            before, after = base[block][selected], tuned[block][selected]
            bin_indices = classify(before)
            words += np.bincount(bin_indices, minlength=bins.size)
            indices = np.flatnonzero(before != after)
            classes = magnitude_class(steps(before[indices], after[indices], coding))
            cells = bin_indices[indices].astype(np.int64) * MAGNITUDE_CLASSES + classes
            magnitudes += np.bincount(cells, minlength=magnitudes.size)
        shape = bins.size, MAGNITUDE_CLASSES
        return Histogram(words * stride, magnitudes.reshape(shape) * stride)

    def partition(
        self,
        base: Words,
        changed: ChangedWords,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""
        tuned = _tuned(base, changed)
        contexts = _ContextWalker(base, coding, bounds, rows)
        counts = [0] * contexts.count
        ranks: list[list[NDArray[np.int64]]] = [[] for _ in counts]
        context_steps: list[list[NDArray[np.int64]]] = [[] for _ in counts]
        for block, members in contexts.blocks():
            before, after = base[block], tuned[block]
            is_changed = before != after
            for i, indices in enumerate(members):
                block_ranks = np.flatnonzero(is_changed[indices])
                ranks[i].append(block_ranks + counts[i])
                counts[i] += indices.size
                moved = indices[block_ranks]
                context_steps[i].append(steps(before[moved], after[moved], coding))
        chunk_ranks = [np.concatenate(r) for r in ranks]
        step = np.concatenate([block_steps for blocks in context_steps for block_steps in blocks])
        masks = [encode_mask(r, n) for r, n in zip(chunk_ranks, counts, strict=True)]
        parts = [*masks, *encode_steps(step, coding.width)]
        return Streams(
            bounds=bounds,
            rows=rows,
            counts=counts,
            changed=[r.size for r in chunk_ranks],
            content=b"".join(parts),
            sizes=[len(part) for part in parts],
            steps=_step_counts(step),
        )

    def record(self, before: Words, after: Words) -> tuple[NDArray[np.uint8], Words]:
        """Return a mask of the changed words, and their old values."""
        is_changed = before != after
        return np.packbits(is_changed, bitorder="little"), before[is_changed]

    def exchange(self, words: Words, mask: NDArray[np.uint8], values: Words) -> None:
        """Swap the masked words with ``values``, in place.

        Raises:
            ValueError: The arrays do not match.
        """
        check_exchange(words, mask, values)
        bits = np.unpackbits(mask, bitorder="little").view(np.bool_)
        if bits[words.size :].any():
            raise ValueError("the mask has a bit set after the last word")
        selected = bits[: words.size]
        if np.count_nonzero(selected) != values.size:
            raise ValueError("the number of values is not the number of bits set in the mask")
        words[selected], values[:] = values, words[selected]

    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Group bins into contexts at minimum cost."""
        return cheapest_cut(words, magnitudes)

    def leaf_hashes(self, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Hash each leaf of a byte string."""
        return leaf_hashes(data)

    def block_ends(self, content: bytes | memoryview, ends: list[int]) -> list[int]:
        """Choose the ends of a frame's blocks."""
        return block_ends(content, ends)

    @staticmethod
    def _count_contexts(
        base: Words, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> list[int]:
        """Count the words of each context."""
        contexts = _ContextWalker(base, coding, bounds, rows)
        totals = [0] * contexts.count
        for _, members in contexts.blocks():
            totals = [n + indices.size for n, indices in zip(totals, members, strict=True)]
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
            StreamError: The streams break the format, or a flagged row has no change.
        """
        counts = self._count_contexts(base, coding, bounds, rows)
        for n, k in zip(counts, changed, strict=True):
            if k > n:
                msg = f"a context of {n} words cannot have {k} changed words"
                raise StreamError(msg)
        streams = StreamReader(content)
        ranks = [decode_mask(streams, n, k) for n, k in zip(counts, changed, strict=True)]
        step = decode_steps(streams, sum(changed), coding.width)
        streams.finish()
        indices = self._chunk_indices(_ContextWalker(base, coding, bounds, rows), ranks)
        if rows is not None:
            has_change = np.zeros(rows.active.size, np.bool_)
            has_change[(indices + rows.offset) // rows.length] = True
            if (rows.active & ~has_change).any():
                msg = "a flagged row has no change"
                raise StreamError(msg)
        words = add_steps(base[indices], step, coding)
        if out is not base:
            out[:] = base
        out[indices] = words

    @staticmethod
    def _chunk_indices(
        contexts: _ContextWalker, ranks: list[NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Convert ranks within contexts to indices within the chunk, context by context."""
        indices: list[list[NDArray[np.int64]]] = [[] for _ in ranks]
        seen = [0] * len(ranks)
        for block, members in contexts.blocks():
            for i, (rank, member) in enumerate(zip(ranks, members, strict=True)):
                start, stop = np.searchsorted(rank, (seen[i], seen[i] + member.size))
                indices[i].append(member[rank[start:stop] - seen[i]] + block.start)
                seen[i] += member.size
        return np.concatenate([part for parts in indices for part in parts])
