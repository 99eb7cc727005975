"""Chunks that a device has encoded up to compression, which runs on CPU threads."""

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
from rlsparse_store.format.digests import leaves_check
from rlsparse_store.format.words import as_words, to_bytes
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.spans import CodedSpan, SpanChunk, roundtrip_error
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
    "ChunkLocation",
    "SpanDraft",
    "store_drafts",
]

BATCH_BYTES: Final = 1 << 19
"""Bytes of streams that a thread compresses in one piece of work, in about a millisecond."""


@dataclass(frozen=True, slots=True)
class ChunkLocation:
    """The location of a chunk in its tensor.

    Attributes:
        span: Span of the chunk.
        extent: Bytes of the chunk in the span.
        first: First word in the tensor.
        words: Number of words.
        row: Words of a row and the position of the first word in its row; ``None`` without row
            flags.
    """

    span: Span
    extent: ChunkExtent
    first: int
    words: int
    row: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ChunkDraft:
    """A chunk before compression.

    Attributes:
        location: Location of the chunk.
        draft: Streams of the chunk.
        base_check: Check of the base words.
        leaves: Leaf hashes of the result.
        tuned: Tuned bytes, if storing them whole may be smaller.
    """

    location: ChunkLocation
    draft: Draft
    base_check: int
    leaves: NDArray[np.uint64]
    tuned: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of main memory in use."""
        return len(self.draft.streams.content) + self.tuned.size

    def store(self) -> SpanChunk:
        """Compress the chunk and verify that it decompresses to what the device verified."""
        location, coding = self.location, self.location.span.coding
        tuned = as_words(self.tuned, coding.width)
        stored = store_draft(get_backend(), self.draft, coding, location.words, tuned)
        base_check = 0
        if isinstance(stored, DeltaChunk):
            rows, content = open_chunk(stored, location.words, coding, location.row)
            if not (
                _same_bytes(content, self.draft.streams.content)
                and _same_flags(rows, self.draft.rows)
            ):
                raise roundtrip_error(location.span.plan)
            base_check = self.base_check
        else:
            _verify_whole(stored, location.words, location.span, self.leaves)
        check, number = leaves_check(self.leaves), location.extent.changed
        return SpanChunk(location.first, location.words, stored, base_check, check, number)


@dataclass(frozen=True, slots=True)
class BlockDraft:
    """A block without base words, which is stored whole.

    Attributes:
        span: Span of the block.
        start: Offset of the first byte in the span.
        data: Tuned bytes.
    """

    span: Span
    start: int
    data: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of main memory in use."""
        return self.data.size

    def store(self) -> SpanChunk:
        """Compress the block and verify that it decompresses to itself."""
        coding = self.span.coding
        words = as_words(self.data, coding.width)
        backend = get_backend()
        chunk, leaves = encode_whole(backend, words, coding), backend.leaf_hashes(self.data)
        _verify_whole(chunk, words.size, self.span, leaves)
        first = coding.num_words(self.span.start + self.start)
        return SpanChunk(first, words.size, chunk, 0, leaves_check(leaves), 0)


@dataclass(frozen=True, slots=True)
class SpanDraft:
    """A span before compression.

    Attributes:
        span: The span.
        chunks: Chunks and whole blocks of the span.
        leaves: Leaf hashes of the tuned bytes.
        base_leaves: Leaf hashes of the base's bytes.
    """

    span: Span
    chunks: list[ChunkDraft | BlockDraft]
    leaves: NDArray[np.uint64]
    base_leaves: NDArray[np.uint64]


def store_drafts(spans: Sequence[SpanDraft], threads: Executor) -> list[CodedSpan]:
    """Compress all chunks of several spans.

    Args:
        spans: The spans.
        threads: Executor that compresses batches of chunks.

    Raises:
        ResultMismatchError: A chunk does not decompress to itself.
    """
    chunks = (chunk for span in spans for chunk in span.chunks)
    batches = batched(((chunk, chunk.nbytes) for chunk in chunks), BATCH_BYTES)
    stored = (chunk for batch in threads.map(_store, batches) for chunk in batch)
    return [
        CodedSpan(span.span, list(islice(stored, len(span.chunks))), span.leaves, span.base_leaves)
        for span in spans
    ]


def _store(batch: Batch[ChunkDraft | BlockDraft]) -> list[SpanChunk]:
    return [chunk.store() for chunk in batch.items]


def _same_bytes(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    # NumPy compares without the GIL.
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def _same_flags(one: Rows | None, other: Rows | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.active, other.active)


def _verify_whole(chunk: WholeChunk, words: int, span: Span, leaves: NDArray[np.uint64]) -> None:
    """Require that a whole chunk decodes to bytes with these leaf hashes."""
    decoded = to_bytes(decode_whole(chunk.stored, words, span.coding), span.coding.width)
    if not np.array_equal(get_backend().leaf_hashes(decoded), leaves):
        raise roundtrip_error(span.plan)
