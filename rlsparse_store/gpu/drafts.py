"""Chunks that a device has encoded up to compression, which runs on CPU threads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.chunk import compress_draft, decode_whole, encode_whole, lay_out
from rlsparse_store.format.frames import decompress
from rlsparse_store.format.index.records import ChunkCoding
from rlsparse_store.format.words import as_words, to_bytes
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.spans import CodedSpan, roundtrip_error, with_checks
from rlsparse_store.pipeline.threads import Batch, batched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from rlsparse_store.codec.chunk import EncodedChunk
    from rlsparse_store.kernels.interface import Streams
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
    """

    span: Span
    extent: ChunkExtent
    first: int
    words: int


@dataclass(frozen=True, slots=True)
class ChunkDraft:
    """A chunk before compression.

    Attributes:
        location: Location of the chunk.
        streams: Streams of the chunk.
        base_leaves: Leaf hashes of the base words.
        leaves: Leaf hashes of the result.
        tuned: Tuned bytes, if storing them whole may be smaller.
    """

    location: ChunkLocation
    streams: Streams
    base_leaves: NDArray[np.uint64]
    leaves: NDArray[np.uint64]
    tuned: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of main memory in use."""
        return len(self.streams.content) + self.tuned.size

    def store(self) -> EncodedChunk:
        """Compress the chunk and verify that it decompresses to what the device verified."""
        location, span, backend = self.location, self.location.span, get_backend()
        draft = lay_out(backend, self.streams)
        chunk = compress_draft(
            backend,
            draft,
            span.coding,
            location.first,
            location.words,
            lambda: as_words(self.tuned, span.coding.width),
        )
        if chunk.record.coding is ChunkCoding.WHOLE:
            _verify_whole(chunk, span, self.leaves)
            return with_checks(chunk, span, None, self.leaves)
        if not _same_bytes(decompress(chunk.stored, len(draft.content)), draft.content):
            raise roundtrip_error(span.plan)
        return with_checks(chunk, span, self.base_leaves, self.leaves)


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

    def store(self) -> EncodedChunk:
        """Compress the block and verify that it decompresses to itself."""
        coding, backend = self.span.coding, get_backend()
        first = coding.num_words(self.span.start + self.start)
        chunk = encode_whole(backend, first, as_words(self.data, coding.width), coding)
        leaves = backend.leaf_hashes(self.data)
        _verify_whole(chunk, self.span, leaves)
        return with_checks(chunk, self.span, None, leaves)


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


def _store(batch: Batch[ChunkDraft | BlockDraft]) -> list[EncodedChunk]:
    return [chunk.store() for chunk in batch.items]


def _same_bytes(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    # NumPy compares without the GIL.
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def _verify_whole(chunk: EncodedChunk, span: Span, leaves: NDArray[np.uint64]) -> None:
    """Require that a whole chunk decodes to bytes with these leaf hashes."""
    decoded = decode_whole(chunk.stored, chunk.record.length, span.coding)
    found = get_backend().leaf_hashes(to_bytes(decoded, span.coding.width))
    if not np.array_equal(found, leaves):
        raise roundtrip_error(span.plan)
