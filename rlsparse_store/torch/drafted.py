"""What comes from a device: streams to be compressed, and what they are checked by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.backends import get_backend
from rlsparse_store.codec import (
    DeltaChunk,
    as_words,
    decode_whole,
    encode_whole,
    open_chunk,
    store_draft,
    to_bytes,
)
from rlsparse_store.delta import BLOCK_WORDS, Coded, CodedSpan, CodedTask, proof_failed
from rlsparse_store.digest import leaf_hashes, leaves_check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.backends import Rows
    from rlsparse_store.codec import Draft, WholeChunk
    from rlsparse_store.delta import Span, Stretch

__all__ = ["DraftedChunk", "DraftedSpan", "DraftedTask"]


@dataclass(frozen=True, slots=True)
class DraftedChunk:
    """A chunk as it came from the device.

    Attributes:
        stretch: Where it lies, in bytes of its span.
        words: How many words it has.
        draft: Its streams.
        base_check: Check of its base words.
        leaves: Leaf hashes of its result.
        tuned: Its tuned bytes, if it may be smaller whole.
    """

    stretch: Stretch
    words: int
    draft: Draft
    base_check: int
    leaves: NDArray[np.uint64]
    tuned: NDArray[np.uint8]

    def store(self, span: Span) -> Coded:
        """Compress it, and prove that it decompresses to what the device proved."""
        coding, tuned = span.coding, as_words(self.tuned, span.coding.width)
        first = coding.num_words(span.start + self.stretch.start)
        stored = store_draft(get_backend(), self.draft, coding, self.words, tuned)
        if isinstance(stored, DeltaChunk):
            row = None if span.row is None else (span.row, first % span.row)
            rows, content = open_chunk(stored, self.words, coding, row)
            if not (
                _same_bytes(content, self.draft.streams.content)
                and _same_flags(rows, self.draft.rows)
            ):
                raise proof_failed(span.plan)
            base_check = self.base_check
        else:
            _require_whole(stored, self.words, span, self.leaves)
            base_check = 0
        check, number = leaves_check(self.leaves), self.stretch.changes.number
        return Coded(first, self.words, stored, base_check, check, number)


def _same_bytes(one: bytes, other: bytes | memoryview) -> bool:
    # NumPy compares without the interpreter's lock.
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def _same_flags(one: Rows | None, other: Rows | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.active, other.active)


def _require_whole(chunk: WholeChunk, words: int, span: Span, leaves: NDArray[np.uint64]) -> None:
    """Require that a chunk that is stored whole has these leaf hashes when it is decoded."""
    decoded = to_bytes(decode_whole(chunk.stored, words, span.coding), span.coding.width)
    if not np.array_equal(leaf_hashes(decoded), leaves):
        raise proof_failed(span.plan)


@dataclass(frozen=True, slots=True)
class DraftedSpan:
    """A span as it came from the device.

    Attributes:
        span: The span.
        chunks: What becomes its chunks of changes.
        rest: The tuned bytes that the base does not have.
        start: Where they begin, in bytes of the span.
        leaves: Leaf hashes of all tuned bytes.
    """

    span: Span
    chunks: list[DraftedChunk]
    rest: NDArray[np.uint8]
    start: int
    leaves: NDArray[np.uint64]

    def store(self) -> CodedSpan:
        """Compress it: what is shared as changes, the rest whole."""
        chunks = [chunk.store(self.span) for chunk in self.chunks]
        size = self.span.coding.nbytes(BLOCK_WORDS)
        place, end = self.start, self.start + self.rest.size
        while place < end:
            stop = min(place // size * size + size, end)
            chunks.append(self._whole(place, stop))
            place = stop
        return CodedSpan(self.span, chunks, self.leaves)

    def _whole(self, start: int, stop: int) -> Coded:
        coding = self.span.coding
        data = self.rest[start - self.start : stop - self.start]
        words = as_words(data, coding.width)
        chunk, leaves = encode_whole(get_backend(), words, coding), leaf_hashes(data)
        _require_whole(chunk, words.size, self.span, leaves)
        first = coding.num_words(self.span.start + start)
        return Coded(first, words.size, chunk, 0, leaves_check(leaves), 0)


@dataclass(frozen=True, slots=True)
class DraftedTask:
    """A task as it came from the device."""

    spans: list[DraftedSpan]
    base_leaves: NDArray[np.uint64]

    def store(self) -> CodedTask:
        """Compress it."""
        return CodedTask([span.store() for span in self.spans], self.base_leaves)
