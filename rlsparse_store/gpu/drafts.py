"""What comes from a device: streams to be compressed, and what they are checked by."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.chunk import (
    DeltaChunk,
    decode_whole,
    encode_whole,
    open_chunk,
    store_draft,
)
from rlsparse_store.format.digests import leaf_hashes, leaves_check
from rlsparse_store.format.words import as_words, to_bytes
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.spans import CodedSpan, SpanChunk, proof_failed
from rlsparse_store.pipeline.threads import Batch, batched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from rlsparse_store.codec.chunk import Draft, WholeChunk
    from rlsparse_store.kernels.interface import Rows
    from rlsparse_store.pipeline.spans import ChunkExtent, Span

__all__ = [
    "BlockDraft",
    "ChunkDraft",
    "ChunkPlace",
    "SpanDraft",
    "store_drafts",
]

STORED_BYTES: Final = 1 << 19
"""Bytes of streams that a thread is given at a time: it compresses them in a millisecond or so."""


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a chunk lies.

    Attributes:
        span: Its span.
        stretch: Its bytes of the span.
        first: Its first word in the tensor.
        words: How many words it has.
        row: Words of a row and the place of its first word in its row, or ``None``.
    """

    span: Span
    stretch: ChunkExtent
    first: int
    words: int
    row: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ChunkDraft:
    """A chunk as it came from the device.

    Attributes:
        place: Where it lies.
        draft: Its streams.
        base_check: Check of its base words.
        leaves: Leaf hashes of its result.
        tuned: Its tuned bytes, if it may be smaller whole.
    """

    place: ChunkPlace
    draft: Draft
    base_check: int
    leaves: NDArray[np.uint64]
    tuned: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes until it is stored."""
        return len(self.draft.streams.content) + self.tuned.size

    def store(self) -> SpanChunk:
        """Compress it, and prove that it decompresses to what the device proved."""
        place, coding = self.place, self.place.span.coding
        tuned = as_words(self.tuned, coding.width)
        stored = store_draft(get_backend(), self.draft, coding, place.words, tuned)
        base_check = 0
        if isinstance(stored, DeltaChunk):
            rows, content = open_chunk(stored, place.words, coding, place.row)
            if not (
                _same_bytes(content, self.draft.streams.content)
                and _same_flags(rows, self.draft.rows)
            ):
                raise proof_failed(place.span.plan)
            base_check = self.base_check
        else:
            _require_whole(stored, place.words, place.span, self.leaves)
        check, number = leaves_check(self.leaves), place.stretch.number
        return SpanChunk(place.first, place.words, stored, base_check, check, number)


@dataclass(frozen=True, slots=True)
class BlockDraft:
    """A block that the base does not have, and that is stored whole.

    Attributes:
        span: Its span.
        start: Its first byte in the span.
        data: Its tuned bytes.
    """

    span: Span
    start: int
    data: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes until it is stored."""
        return self.data.size

    def store(self) -> SpanChunk:
        """Compress it, and prove that it decompresses to itself."""
        coding = self.span.coding
        words = as_words(self.data, coding.width)
        chunk, leaves = encode_whole(get_backend(), words, coding), leaf_hashes(self.data)
        _require_whole(chunk, words.size, self.span, leaves)
        first = coding.num_words(self.span.start + self.start)
        return SpanChunk(first, words.size, chunk, 0, leaves_check(leaves), 0)


@dataclass(frozen=True, slots=True)
class SpanDraft:
    """A span as it came from the device.

    Attributes:
        span: The span.
        chunks: What becomes its chunks.
        leaves: Leaf hashes of all tuned bytes.
        base_leaves: Leaf hashes of the base's bytes.
    """

    span: Span
    chunks: list[ChunkDraft | BlockDraft]
    leaves: NDArray[np.uint64]
    base_leaves: NDArray[np.uint64]


def store_drafts(spans: Sequence[SpanDraft], threads: Executor) -> list[CodedSpan]:
    """Compress all chunks of some spans.

    Args:
        spans: The spans.
        threads: Runs what compresses them, a few chunks at a time.

    Raises:
        ResultMismatchError: A chunk does not decompress to itself.
    """
    chunks = (chunk for span in spans for chunk in span.chunks)
    pieces = batched(((chunk, chunk.nbytes) for chunk in chunks), STORED_BYTES)
    stored = (chunk for piece in threads.map(_store, pieces) for chunk in piece)
    return [
        CodedSpan(span.span, list(islice(stored, len(span.chunks))), span.leaves, span.base_leaves)
        for span in spans
    ]


def _store(piece: Batch[ChunkDraft | BlockDraft]) -> list[SpanChunk]:
    return [chunk.store() for chunk in piece.items]


def _same_bytes(one: bytes | memoryview, other: bytes | memoryview) -> bool:
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
