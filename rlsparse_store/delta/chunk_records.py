"""Encoded chunks as records of the index, and what the chunks of a tensor add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlsparse_store.codec.chunk import DeltaChunk
from rlsparse_store.format.digests import bytes_check
from rlsparse_store.format.index.records import ChunkCoding, ChunkRecord

if TYPE_CHECKING:
    from rlsparse_store.files.delta_writer import ChunkLocation
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.pipeline.spans import SpanChunk

__all__ = ["ChunkCounts", "chunk_record"]


def chunk_record(
    tensor: int, coded: SpanChunk, place: ChunkLocation, first: int = 0
) -> ChunkRecord:
    """Return the record of a chunk.

    Args:
        tensor: Number of its tensor.
        coded: The chunk.
        place: Where it is stored.
        first: Words of the tensor before those that the chunk counts from.
    """
    chunk = coded.chunk
    coding = ChunkCoding.WHOLE
    if isinstance(chunk, DeltaChunk):
        coding = ChunkCoding.DELTA_WITH_ROWS if chunk.has_row_flags else ChunkCoding.DELTA
    return ChunkRecord(
        tensor,
        first + coded.first,
        coded.length,
        coding,
        place.shard,
        place.offset,
        len(chunk.stored),
        bytes_check(chunk.stored),
        coded.result_check,
        coded.base_check,
        chunk.bounds if isinstance(chunk, DeltaChunk) else (),
        chunk.changed if isinstance(chunk, DeltaChunk) else (),
    )


@dataclass(slots=True)
class ChunkCounts:
    """What the chunks of a tensor add up to.

    Attributes:
        steps: Changed words of delta chunks by step, as in the index.
        moved: Changed words in whole chunks.
        whole_raw: Bytes of whole chunks, as in the checkpoint.
        whole_stored: Their bytes in the delta.
    """

    steps: list[int] = field(default_factory=lambda: [0] * 8)
    moved: int = 0
    whole_raw: int = 0
    whole_stored: int = 0

    def add(self, coded: SpanChunk, coding: WordCoding) -> None:
        """Add a chunk."""
        chunk = coded.chunk
        if isinstance(chunk, DeltaChunk):
            self.steps = [a + b for a, b in zip(self.steps, chunk.steps, strict=True)]
        else:
            self.moved += coded.changed
            self.whole_raw += coding.nbytes(coded.length)
            self.whole_stored += len(chunk.stored)

    def merge(self, other: ChunkCounts) -> None:
        """Add the chunks that ``other`` counts."""
        self.steps = [a + b for a, b in zip(self.steps, other.steps, strict=True)]
        self.moved += other.moved
        self.whole_raw += other.whole_raw
        self.whole_stored += other.whole_stored
