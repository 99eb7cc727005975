"""rlsparse_store: chunks cut as ``rlsparse_store.pipeline.spans`` cuts them, coded one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from peers.base import Codec, Coded, Kind
from rlsparse_store.codec.chunk import EncodedChunk, decode_chunk, encode_chunk
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import ChangedWords, ChangeList, ChunkWords
from rlsparse_store.pipeline.spans import BLOCK_WORDS, Chunker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.base import Tensor, Tensors

CHUNK_WORDS = 64 * BLOCK_WORDS
BF16 = DTYPES["BF16"]
Chunks: TypeAlias = list[list[EncodedChunk]]


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
        return Coded(chunks, sum(_nbytes(chunk) for tensor in chunks for chunk in tensor))

    def decode(self, base: Tensors, payload: Chunks) -> Tensors:
        """Decode every chunk into its place."""
        for tensor, chunks in zip(base, payload, strict=True):
            for _ in self.patch(tensor, chunks):
                pass
        return base

    def patch(self, tensor: Tensor, chunks: list[EncodedChunk]) -> Iterator[None]:
        """Decode the chunks of a tensor, one per step, over its base words."""
        words, row_words = tensor.reshape(-1), _row_words(tensor)
        for record, stored, *_ in chunks:
            part = words[record.first : record.first + record.length]
            decoded = decode_chunk(
                self._backend, record, stored, BF16.coding, row_words, part, part
            )
            if decoded is not part:
                part[:] = decoded
            yield

    def code(self, base: Tensor, tuned: Tensor) -> Iterator[EncodedChunk]:
        """Code the chunks of a tensor, one per step."""
        before, after = base.reshape(-1), tuned.reshape(-1)
        for place, changes in self._cut(before, after):
            row_words = _row_words(base)
            words = ChunkWords(place.start, before[place], row_words, changes)
            yield encode_chunk(self._backend, words, BF16.coding, BF16.mantissa_bits)

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


def _row_words(tensor: Tensor) -> int | None:
    return int(tensor.shape[-1]) if tensor.ndim > 1 else None


def _nbytes(chunk: EncodedChunk) -> int:
    """What is stored, and its numbers in the index, at 8 bytes each, less than which they take."""
    numbers = [*chunk.record.bounds, *chunk.record.changed]
    if numbers:
        numbers += chunk.steps
    return len(chunk.stored) + 8 * len(numbers)
