"""Calls of the compiled loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import StreamError
from rlsparse_store.format.digests import LEAF_BYTES
from rlsparse_store.kernels.cost import (
    BLOCK_COST,
    CONTEXT_COST,
    CONTEXT_LIMIT,
    EMPTY_COST,
    LOG2,
    ROW_FLAG_MARGIN,
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
    SmallDrafts,
    Streams,
    check_exchange,
    row_count,
)
from rlsparse_store.kernels.native import _kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import (
        ChangedWords,
        ChangeList,
        ChunkStreams,
        DraftRules,
        SmallTensors,
    )

__all__ = ["NativeBackend"]


_COSTS: Final = (
    LOG2,
    CONTEXT_COST,
    EMPTY_COST,
    CONTEXT_LIMIT,
    SAMPLED_BYTES,
    BLOCK_COST,
    TABLE_COST,
    SYMBOL_COST,
    ROW_FLAG_MARGIN,
)
"""What drafting takes of the cost model."""


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
        rows: Rows | None,
        stride: int,
        few: int,
    ) -> Draft | None:
        """Choose contexts, row flags and blocks, and split a chunk, in one call."""
        active, length, offset = _row_arguments(rows)
        found = _kernels.draft(
            self.name,
            base,
            coding.width,
            coding.order,
            bins,
            active,
            length,
            offset,
            changed.mask,
            changed.before,
            changed.after,
            changed.top_key,
            stride,
            few,
            _COSTS,
        )
        return None if found is None else Draft(*found)

    def draft_each(
        self,
        tensors: SmallTensors,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rules: DraftRules,
    ) -> SmallDrafts:
        """Compare and draft many small tensors in one call."""
        changes = np.empty(tensors.ends.size, np.uint64)
        found = _kernels.draft_each(
            self.name,
            tensors.base,
            tensors.tuned,
            coding.width,
            coding.order,
            bins,
            tensors.ends,
            tensors.row_words,
            changes,
            rules.sample,
            rules.most_stride,
            rules.inactive_rows,
            rules.few,
            _COSTS,
        )
        drafts = [None if draft is None else Draft(*draft) for draft in found]
        return SmallDrafts(changes.tolist(), drafts)

    def apply_each(
        self,
        base: Words,
        ends: NDArray[np.uint64],
        coding: WordCoding,
        chunks: list[ChunkStreams | None],
        out: Words | None,
        leaves: NDArray[np.uint64],
    ) -> None:
        """Decode many small chunks in one call.

        Raises:
            StreamError: The streams of one break the format.
        """
        problem = _kernels.apply_each(
            self.name, base, out, coding.width, coding.order, ends, chunks, leaves
        )
        if problem is not None:
            raise StreamError(problem)

    def hash_each(self, data: NDArray[np.uint8], ends: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Hash many byte strings in one call."""
        hashes = np.empty(ends.size, np.uint64)
        _kernels.hash_each(self.name, data, ends, hashes)
        return hashes

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
