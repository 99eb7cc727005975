"""Calls of the compiled loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.errors import StreamError
from rlsparse_store.format.digests import LEAF_BYTES
from rlsparse_store.kernels.cost import (
    BLOCK_COST,
    CONTEXT_COST,
    CONTEXT_LIMIT,
    EMPTY_COST,
    LOG2,
    SAMPLED_BYTES,
    SYMBOL_COST,
    TABLE_COST,
)
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    Changes,
    CpuBackend,
    Draft,
    Histogram,
    Rows,
    Streams,
    check_exchange,
    row_count,
)
from rlsparse_store.kernels.native import _kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import ChangedWords, ChangeList

__all__ = ["NativeBackend"]


def _row_arguments(rows: Rows | None) -> tuple[NDArray[np.bool_] | None, int, int]:
    return (None, 1, 0) if rows is None else (rows.active, rows.length, rows.offset)


class NativeBackend(CpuBackend):
    """The compiled loops for one instruction set. They release the GIL.

    Args:
        instruction_set: Its name.
    """

    def __init__(self, instruction_set: str) -> None:
        self.name = instruction_set

    def compare(self, base: Words, tuned: Words, coding: WordCoding, into: ChangeList) -> Changes:
        """Append the changed words to a list, and summarize them."""
        arrays = into.reserve(base.size, base.dtype)
        changes = _kernels.compare(self.name, base, tuned, coding.width, coding.order, *arrays)
        return into.add(base.size, Changes(*changes))

    def active_rows(self, changed: ChangedWords, words: int, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""
        active = np.zeros(row_count(words, length, offset), np.bool_)
        _kernels.active_rows(changed.mask, words, length, offset, active)
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
        """Count words and steps by bin of the base word's key."""
        words = np.zeros(bins.size, np.int64)
        magnitudes = np.zeros((bins.size, MAGNITUDE_CLASSES), np.int64)
        _kernels.histogram(
            self.name,
            base,
            coding.width,
            coding.order,
            bins,
            *_row_arguments(rows),
            changed.mask,
            changed.before,
            changed.after,
            stride,
            words,
            magnitudes,
        )
        return Histogram(words, magnitudes)

    def partition(
        self,
        base: Words,
        changed: ChangedWords,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""
        return Streams(
            bounds,
            rows,
            *_kernels.partition(
                self.name,
                base,
                coding.width,
                coding.order,
                bounds,
                *_row_arguments(rows),
                changed.mask,
                changed.before,
                changed.after,
            ),
        )

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
        self._apply(base, coding, bounds, rows, changed, content, out, None)

    def apply_hashed(
        self,
        base: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes | memoryview,
        out: Words | None,
    ) -> NDArray[np.uint64]:
        """Decode the streams, and return the leaf hashes of the tuned words' bytes.

        Raises:
            StreamError: The streams break the format, or a flagged row has no change.
        """
        leaves = np.empty(-(-coding.nbytes(base.size) // LEAF_BYTES), np.uint64)
        self._apply(base, coding, bounds, rows, changed, content, out, leaves)
        return leaves

    def _apply(
        self,
        base: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes | memoryview,
        out: Words | None,
        leaves: NDArray[np.uint64] | None,
    ) -> None:
        problem = _kernels.apply(
            self.name,
            base,
            out,
            coding.width,
            coding.order,
            bounds,
            *_row_arguments(rows),
            np.array(changed, np.uint64),
            content,
            leaves,
        )
        if problem is not None:
            raise StreamError(problem)

    def draft(
        self,
        base: Words,
        changed: ChangedWords,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        stride: int,
        few: int,
    ) -> Draft | None:
        """Choose contexts and blocks, and split a chunk, in one call."""
        found = _kernels.draft(
            self.name,
            base,
            coding.width,
            coding.order,
            bins,
            changed.mask,
            changed.before,
            changed.after,
            changed.top_key,
            stride,
            few,
            LOG2,
            CONTEXT_COST,
            EMPTY_COST,
            CONTEXT_LIMIT,
            SAMPLED_BYTES,
            BLOCK_COST,
            TABLE_COST,
            SYMBOL_COST,
        )
        return None if found is None else Draft(*found)

    def record(self, before: Words, after: Words) -> tuple[NDArray[np.uint8], Words]:
        """Return a mask of the changed words, and their old values."""
        mask = np.empty(-(-before.size // 8), np.uint8)
        # Untouched pages cost nothing; resize() returns the rest in place.
        values = np.empty(before.size, before.dtype)
        count = _kernels.record(self.name, before, after, before.itemsize, mask, values)
        values.resize(count, refcheck=False)
        return mask, values

    def exchange(self, words: Words, mask: NDArray[np.uint8], values: Words) -> None:
        """Swap the masked words with ``values``, in place.

        Raises:
            ValueError: The arrays do not match.
        """
        check_exchange(words, mask, values)
        _kernels.exchange(self.name, words, words.itemsize, mask, values)

    def leaf_hashes(self, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Hash each leaf of a byte string."""
        hashes = np.empty(-(-data.size // LEAF_BYTES), np.uint64)
        _kernels.leaf_hashes(self.name, data, hashes)
        return hashes

    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Group bins into contexts at minimum cost."""
        return _kernels.cheapest_cut(
            np.ascontiguousarray(words),
            np.ascontiguousarray(magnitudes),
            LOG2,
            CONTEXT_COST,
            EMPTY_COST,
            CONTEXT_LIMIT,
        )

    def block_ends(self, content: bytes | memoryview, ends: list[int]) -> list[int]:
        """Choose the ends of a frame's blocks."""
        return _kernels.block_ends(
            content,
            np.array(ends, np.uint64),
            LOG2,
            SAMPLED_BYTES,
            BLOCK_COST,
            TABLE_COST,
            SYMBOL_COST,
        )
