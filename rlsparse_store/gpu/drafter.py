"""Spans on a device: compared, split into streams and proven there, many chunks at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.chunk import draft_chunks, may_be_whole
from rlsparse_store.format.digests import LEAF_BYTES, leaves_check
from rlsparse_store.gpu.drafts import BlockDraft, ChunkDraft, ChunkPlace, SpanDraft
from rlsparse_store.gpu.hashing import hash_all_on_device, hash_on_device
from rlsparse_store.gpu.memory import words_of
from rlsparse_store.kernels.interface import CodedWords
from rlsparse_store.pipeline.spans import (
    BLOCK_WORDS,
    ChunkExtent,
    Span,
    chunk_extents,
    proof_failed,
)
from rlsparse_store.pipeline.threads import batched

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from rlsparse_store.codec.chunk import Draft
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.backend import GpuBackend
    from rlsparse_store.gpu.diff import Diff
    from rlsparse_store.kernels.interface import ChunkWords

__all__ = ["DeviceSpan", "Drafter", "drafting_memory", "hash_all"]

CHUNK_MEMORY: Final = 1 << 18
"""Bytes of a device that a chunk counts for, however small it is: for its histogram and a tile it
takes some 40 KB, and no more than some thousand are to be drafted at a time."""

_NO_BYTES: Final = np.zeros(0, np.uint8)


def _no_leaves() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


def hash_all(spans: list[DeviceSpan]) -> None:
    """Compute the leaf hashes of all words, but for those of the base that are known."""
    fresh = [span for span in spans if span.span.base_leaves is None]
    data = [span.new for span in spans] + [span.old for span in fresh]
    found = iter(hash_all_on_device(data))
    for span in spans:
        span.new_leaves = next(found)
        if span.span.base_leaves is not None:
            span.old_leaves = span.span.base_leaves
    for span in fresh:
        span.old_leaves = next(found)


@dataclass(slots=True, eq=False)
class DeviceSpan:
    """A span whose words are on the device.

    Attributes:
        span: The span.
        old: The base's bytes of it.
        new: The tuned bytes.
        shared: Bytes of it that both have.
        row: Words of a row of its tensor, or ``None`` where rows mean nothing.
        old_leaves: Leaf hashes of ``old``.
        new_leaves: Leaf hashes of ``new``.
        chunks: What was drafted of it.
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
        """Ask once what every chunk needs."""
        self.shared = self.span.shared_stop - self.span.start
        self.row = self.span.row

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The words that both have."""
        width = self.span.coding.width
        return words_of(self.old[: self.shared], width), words_of(self.new[: self.shared], width)

    def add(self, chunk: _Chunk, draft: Draft) -> None:
        """Take a chunk that was drafted, with what storing it needs of the device."""
        place, stretch = chunk.place, chunk.place.stretch
        base_check = leaves_check(_leaves(self.old, self.old_leaves, stretch))
        leaves = _leaves(self.new, self.new_leaves, stretch)
        tuned = _NO_BYTES
        if may_be_whole(draft, self.span.coding.nbytes(place.words)):
            tuned = self.new[stretch.start : stretch.stop].cpu().numpy()
        self.chunks.append(ChunkDraft(place, draft, base_check, leaves, tuned))

    def drafted(self) -> SpanDraft:
        """What is left to be done once its words are no longer on the device."""
        rest, size = self.new[self.shared :], self.span.coding.nbytes(BLOCK_WORDS)
        data = rest.cpu().numpy() if len(rest) else _NO_BYTES
        place, end = self.shared, self.shared + data.size
        while place < end:
            stop = min(place // size * size + size, end)
            block = data[place - self.shared : stop - self.shared]
            self.chunks.append(BlockDraft(self.span, place, block))
            place = stop
        return SpanDraft(self.span, self.chunks, self.new_leaves, self.old_leaves)


def _leaves(
    data: torch.Tensor, leaves: NDArray[np.uint64], part: ChunkExtent
) -> NDArray[np.uint64]:
    """The leaf hashes of a part that begins with a leaf, from those of the whole."""
    if part.stop % LEAF_BYTES == 0 or part.stop == data.numel():
        return leaves[part.start // LEAF_BYTES : -(-part.stop // LEAF_BYTES)]
    last = part.stop // LEAF_BYTES
    short = hash_on_device(data[last * LEAF_BYTES : part.stop])
    return np.concatenate([leaves[part.start // LEAF_BYTES : last], short])


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What is drafted next.

    Attributes:
        span: Its span.
        place: Where it lies.
        words: Its words.
    """

    span: DeviceSpan
    place: ChunkPlace
    words: ChunkWords


def drafting_memory(words: int, changed: int) -> int:
    """About how many bytes of the device a chunk takes while it is drafted.

    Each word has up to five bits that tell its context, and a share of what is counted for its
    tile; each changed word a rank, a step and its streams, or when it is proven, its step, its
    streams, and twice as much for the places in them.

    Args:
        words: Words of the chunk.
        changed: Those that changed.
    """
    return CHUNK_MEMORY + words * 3 // 4 + changed * 9


class Drafter:
    """Spans of one word coding, whose chunks are drafted together.

    Args:
        backend: Runs the loops.
        spans: The spans.
        coding: Their word coding.
        mantissa_bits: Of a floating-point dtype.
    """

    def __init__(
        self,
        backend: GpuBackend,
        spans: list[DeviceSpan],
        coding: WordCoding,
        mantissa_bits: int | None,
    ) -> None:
        self._backend = backend
        self._spans = [span for span in spans if span.shared]
        self._coding = coding
        self._mantissa_bits = mantissa_bits

    def run(self, memory: int) -> None:
        """Draft all chunks, so many at a time as take about so many bytes of the device."""
        if not self._spans:
            return
        diff = self._backend.diff([span.run() for span in self._spans], self._coding)
        chunks = (
            (chunk, drafting_memory(chunk.place.words, chunk.place.stretch.number))
            for number in range(len(self._spans))
            for chunk in self._chunks(diff, number)
        )
        for batch in batched(chunks, memory - diff.bits.nbytes):
            self._draft(batch.items)

    def _chunks(self, diff: Diff, number: int) -> Iterator[_Chunk]:
        """The chunks of a span."""
        span, num_words = self._spans[number], self._coding.num_words
        before = num_words(span.span.start)
        blocks, size = diff.blocks(number, BLOCK_WORDS), self._coding.nbytes(BLOCK_WORDS)
        for stretch in chunk_extents(blocks, size, span.shared):
            start, stop = num_words(stretch.start), num_words(stretch.stop)
            row = None if span.row is None else (span.row, (before + start) % span.row)
            place = ChunkPlace(span.span, stretch, before + start, stop - start, row)
            words = diff.chunk(number, slice(start, stop), row, stretch.changes)
            yield _Chunk(span, place, words)

    def _draft(self, batch: list[_Chunk]) -> None:
        """Split chunks into streams, and prove that they join to the same words."""
        chunks = [chunk.words for chunk in batch]
        drafts = draft_chunks(self._backend, chunks, self._coding, self._mantissa_bits)
        coded = [
            CodedWords(words.base, d.bounds, d.rows, d.streams.changed, d.streams.content)
            for words, d in zip(chunks, drafts, strict=True)
        ]
        problems = self._backend.prove(coded, [words.tuned for words in chunks], self._coding)
        for chunk, draft, problem in zip(batch, drafts, problems, strict=True):
            if problem is not None:
                raise proof_failed(chunk.span.span.plan) from problem
            chunk.span.add(chunk, draft)
