"""rlsparse_store: chunks cut as ``rlsparse_store.pipeline.spans`` cuts them, coded one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from peers.base import Codec, Coded, Kind
from rlsparse_store.codec.chunk import (
    CodedChunk,
    DeltaChunk,
    decode_delta,
    decode_whole,
    encode_chunk,
)
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import ChangedWords, ChangeList, ChunkWords
from rlsparse_store.pipeline.spans import BLOCK_WORDS, Chunker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.base import Tensor, Tensors

CHUNK_WORDS = 64 * BLOCK_WORDS
BF16 = DTYPES["BF16"]
Chunks: TypeAlias = list[list[tuple[slice, CodedChunk]]]


class Ours(Codec[Chunks]):
    """The codec, without files, digests and the check of each chunk that encoding a file makes."""

    name = "rlsparse_store"
    kind = Kind.OURS
    in_place = True

    def __init__(self) -> None:
        self._backend = get_backend()
        self._changed = ChangeList()

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[Chunks]:
        """Code every chunk of every tensor."""
        chunks = [list(self.code(*pair)) for pair in zip(base, tuned, strict=True)]
        return Coded(chunks, sum(_nbytes(chunk) for tensor in chunks for _, chunk in tensor))

    def decode(self, base: Tensors, payload: Chunks) -> Tensors:
        """Decode every chunk into its place."""
        for tensor, chunks in zip(base, payload, strict=True):
            for _ in self.patch(tensor, chunks):
                pass
        return base

    def patch(self, tensor: Tensor, chunks: list[tuple[slice, CodedChunk]]) -> Iterator[None]:
        """Decode the chunks of a tensor, one per step, over its base words."""
        words = tensor.reshape(-1)
        for place, chunk in chunks:
            part = words[place]
            if isinstance(chunk, DeltaChunk):
                row = _row(tensor, place.start)
                decode_delta(self._backend, part, BF16.coding, chunk, row, out=part)
            else:
                part[:] = decode_whole(chunk.stored, part.size, BF16.coding)
            yield

    def code(self, base: Tensor, tuned: Tensor) -> Iterator[tuple[slice, CodedChunk]]:
        """Code the chunks of a tensor, one per step."""
        before, after = base.reshape(-1), tuned.reshape(-1)
        for place, changes in self._cut(before, after):
            words = ChunkWords(before[place], after[place], _row(base, place.start), changes)
            yield place, encode_chunk(self._backend, words, BF16.coding, BF16.mantissa_bits)

    def _cut(self, before: Tensor, after: Tensor) -> Iterator[tuple[slice, ChangedWords]]:
        """Close a chunk once it holds enough changes or words; skip blocks without changes."""
        chunker = Chunker()
        for start in range(0, before.size, BLOCK_WORDS):
            if not chunker.is_open:
                self._changed.clear()
            stop = min(start + BLOCK_WORDS, before.size)
            old, new = before[start:stop], after[start:stop]
            chunker.add(start, stop, self._backend.compare(old, new, BF16.coding, self._changed))
            is_last = stop == before.size or stop % CHUNK_WORDS == 0
            if (chunker.is_full or is_last) and (chunk := chunker.close()) is not None:
                yield slice(chunk.start, chunk.stop), self._changed.first(chunk.stop - chunk.start)


def _row(tensor: Tensor, start: int) -> tuple[int, int] | None:
    width = tensor.shape[-1]
    return (width, start % width) if tensor.ndim > 1 else None


def _nbytes(chunk: CodedChunk) -> int:
    """What is stored, and its numbers in the index, at 8 bytes each, less than which they take."""
    numbers = [*chunk.bounds, *chunk.changed, *chunk.steps] if isinstance(chunk, DeltaChunk) else []
    return len(chunk.stored) + 8 * len(numbers)
