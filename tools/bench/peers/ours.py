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
from rlsparse_store.kernels.interface import Changes, ChunkWords
from rlsparse_store.pipeline.spans import BLOCK_WORDS, chunk_extents

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

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[Chunks]:
        """Code every chunk of every tensor."""
        chunks = [list(self._code(*pair)) for pair in zip(base, tuned, strict=True)]
        return Coded(chunks, sum(_nbytes(chunk) for tensor in chunks for _, chunk in tensor))

    def decode(self, base: Tensors, payload: Chunks) -> Tensors:
        """Decode every chunk into its place."""
        for tensor, chunks in zip(base, payload, strict=True):
            words = tensor.reshape(-1)
            for place, chunk in chunks:
                part = words[place]
                if isinstance(chunk, DeltaChunk):
                    row = _row(tensor, place.start)
                    decode_delta(self._backend, part, BF16.coding, chunk, row, out=part)
                else:
                    part[:] = decode_whole(chunk.stored, part.size, BF16.coding)
        return base

    def _code(self, base: Tensor, tuned: Tensor) -> Iterator[tuple[slice, CodedChunk]]:
        before, after = base.reshape(-1), tuned.reshape(-1)
        for place, changes in self._cut(before, after):
            words = ChunkWords(before[place], after[place], _row(base, place.start), changes)
            yield place, encode_chunk(self._backend, words, BF16.coding, BF16.mantissa_bits)

    def _cut(self, before: Tensor, after: Tensor) -> Iterator[tuple[slice, Changes]]:
        """Close a chunk once it holds enough changes or words; skip blocks without changes."""
        for first in range(0, before.size, CHUNK_WORDS):
            old, new = (words[first : first + CHUNK_WORDS] for words in (before, after))
            blocks = (
                self._backend.changes(
                    old[block : block + BLOCK_WORDS], new[block : block + BLOCK_WORDS], BF16.coding
                )
                for block in range(0, old.size, BLOCK_WORDS)
            )
            for chunk in chunk_extents(blocks, BLOCK_WORDS, old.size):
                yield slice(first + chunk.start, first + chunk.stop), chunk.changes


def _row(tensor: Tensor, start: int) -> tuple[int, int] | None:
    width = tensor.shape[-1]
    return (width, start % width) if tensor.ndim > 1 else None


def _nbytes(chunk: CodedChunk) -> int:
    """What is stored, and its numbers in the index, at 8 bytes each, less than which they take."""
    numbers = [*chunk.bounds, *chunk.changed, *chunk.steps] if isinstance(chunk, DeltaChunk) else []
    return len(chunk.stored) + 8 * len(numbers)
