"""Encoding spans on a device up to compression, many chunks at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.chunk import may_store_whole
from rlsparse_store.format.digests import LEAF_BYTES
from rlsparse_store.gpu.chunk_streams import make_streams
from rlsparse_store.gpu.chunk_words import CodedWords
from rlsparse_store.gpu.diff import diff
from rlsparse_store.gpu.drafts import BlockDraft, ChunkDraft, ChunkLocation, SpanDraft
from rlsparse_store.gpu.hashing import hash_all_on_device, hash_on_device
from rlsparse_store.gpu.join import verify_chunks
from rlsparse_store.gpu.memory import words_of
from rlsparse_store.kernels.interface import place_in_row
from rlsparse_store.pipeline.spans import (
    BLOCK_WORDS,
    ChunkExtent,
    Span,
    chunk_extents,
    roundtrip_error,
)
from rlsparse_store.pipeline.threads import batched

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.chunk_words import ChunkWords
    from rlsparse_store.gpu.diff import Diff
    from rlsparse_store.kernels.interface import Streams

__all__ = ["DeviceSpan", "draft_all", "draft_memory", "hash_all"]

CHUNK_MEMORY: Final = 1 << 18
"""Minimum device memory that is reserved for a chunk, in bytes. Its histogram and a tile take about
40 KB; the rest limits a batch to a few thousand chunks."""

_NO_BYTES: Final = np.zeros(0, np.uint8)


def _no_leaves() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


def hash_all(spans: list[DeviceSpan]) -> None:
    """Compute the leaf hashes of all words, except for known ones of the base."""
    unhashed = [span for span in spans if span.span.base_leaves is None]
    data = [span.new for span in spans] + [span.old for span in unhashed]
    found = iter(hash_all_on_device(data))
    for span in spans:
        span.new_leaves = next(found)
        if span.span.base_leaves is not None:
            span.old_leaves = span.span.base_leaves
    for span in unhashed:
        span.old_leaves = next(found)


@dataclass(slots=True, eq=False)
class DeviceSpan:
    """A span whose words are on the device.

    Attributes:
        span: The span.
        old: The base's bytes.
        new: The tuned bytes.
        shared: Number of leading bytes that both have.
        row: Words of a row of the tensor; ``None`` without row flags.
        old_leaves: Leaf hashes of ``old``.
        new_leaves: Leaf hashes of ``new``.
        chunks: The chunks that are drafted so far.
    """

    span: Span
    old: torch.Tensor
    new: torch.Tensor
    shared: int = field(init=False)
    row: int | None = field(init=False)
    old_leaves: NDArray[np.uint64] = field(default_factory=_no_leaves)
    new_leaves: NDArray[np.uint64] = field(default_factory=_no_leaves)
    chunks: list[ChunkDraft | BlockDraft] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Compute once what every chunk needs."""
        self.shared = self.span.shared_stop - self.span.start
        self.row = self.span.row_words

    def words(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the base and tuned words that both have."""
        width = self.span.coding.width
        return words_of(self.old[: self.shared], width), words_of(self.new[: self.shared], width)

    def add(self, chunk: _Chunk, streams: Streams) -> None:
        """Add the streams of a chunk, with the bytes and hashes that compression needs."""
        location, extent = chunk.location, chunk.location.extent
        base_leaves = _leaves(self.old, self.old_leaves, extent)
        leaves = _leaves(self.new, self.new_leaves, extent)
        tuned = _NO_BYTES
        if may_store_whole(streams, self.span.coding.nbytes(location.words)):
            tuned = self.new[extent.start : extent.stop].cpu().numpy()
        self.chunks.append(ChunkDraft(location, streams, base_leaves, leaves, tuned))

    def to_draft(self) -> SpanDraft:
        """Return the draft, which needs no device memory."""
        rest, size = self.new[self.shared :], self.span.coding.nbytes(BLOCK_WORDS)
        data = rest.cpu().numpy() if len(rest) else _NO_BYTES
        start, end = self.shared, self.shared + data.size
        while start < end:
            stop = min(start // size * size + size, end)
            block = data[start - self.shared : stop - self.shared]
            self.chunks.append(BlockDraft(self.span, start, block))
            start = stop
        return SpanDraft(self.span, self.chunks, self.new_leaves, self.old_leaves)


def _leaves(
    data: torch.Tensor, leaves: NDArray[np.uint64], part: ChunkExtent
) -> NDArray[np.uint64]:
    """Return the leaf hashes of a part that starts at a leaf, from those of the whole."""
    if part.stop % LEAF_BYTES == 0 or part.stop == data.numel():
        return leaves[part.start // LEAF_BYTES : -(-part.stop // LEAF_BYTES)]
    last = part.stop // LEAF_BYTES
    short = hash_on_device(data[last * LEAF_BYTES : part.stop])
    return np.concatenate([leaves[part.start // LEAF_BYTES : last], short])


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk to draft.

    Attributes:
        span: Span of the chunk.
        location: Location of the chunk.
        words: Words of the chunk.
    """

    span: DeviceSpan
    location: ChunkLocation
    words: ChunkWords


def draft_memory(words: int, changed: int) -> int:
    """Estimate the device memory of a chunk while it is drafted, in bytes.

    A word needs up to five bits for its context, and a share of its tile's counts. A changed word
    needs a rank, a step and its streams; when it is verified, its step, its streams and the
    positions in them.

    Args:
        words: Words of the chunk.
        changed: Changed words of the chunk.
    """
    return CHUNK_MEMORY + words * 3 // 4 + changed * 9


def draft_all(
    spans: list[DeviceSpan], coding: WordCoding, mantissa_bits: int | None, memory: int
) -> None:
    """Draft all chunks of spans, in batches of about ``memory`` bytes of the device.

    Args:
        spans: The spans.
        coding: Their word coding.
        mantissa_bits: Mantissa bits of a floating-point dtype, else ``None``.
        memory: Bytes of device memory.

    Raises:
        ResultMismatchError: A chunk does not decode to its words.
        OutOfMemoryError: The device is out of memory.
    """
    spans = [span for span in spans if span.shared]
    if not spans:
        return
    compared = diff([span.words() for span in spans], coding)
    chunks = (
        (chunk, draft_memory(chunk.location.words, chunk.location.extent.changed))
        for number, span in enumerate(spans)
        for chunk in _chunks(compared, number, span)
    )
    for batch in batched(chunks, memory - compared.bits.nbytes):
        _draft(batch.items, coding, mantissa_bits)


def _chunks(compared: Diff, number: int, span: DeviceSpan) -> Iterator[_Chunk]:
    """Yield the chunks of a span, which has this number in the diff."""
    coding = span.span.coding
    before = coding.num_words(span.span.start)
    blocks, size = compared.blocks(number, BLOCK_WORDS), coding.nbytes(BLOCK_WORDS)
    for extent in chunk_extents(blocks, size, span.shared):
        start, stop = coding.num_words(extent.start), coding.num_words(extent.stop)
        row = place_in_row(before + start, span.row)
        location = ChunkLocation(span.span, extent, before + start, stop - start)
        words = compared.chunk(number, slice(start, stop), row, extent.changes)
        yield _Chunk(span, location, words)


def _draft(batch: list[_Chunk], coding: WordCoding, mantissa_bits: int | None) -> None:
    """Split chunks into streams and verify that they decode to the tuned words."""
    chunks = [chunk.words for chunk in batch]
    made = make_streams(chunks, coding, mantissa_bits)
    coded = [
        CodedWords(words.base, s.bounds, s.rows, s.changed, s.content)
        for words, s in zip(chunks, made, strict=True)
    ]
    problems = verify_chunks(coded, [words.tuned for words in chunks], coding)
    for chunk, streams, problem in zip(batch, made, problems, strict=True):
        if problem is not None:
            raise roundtrip_error(chunk.span.span.plan) from problem
        chunk.span.add(chunk, streams)
