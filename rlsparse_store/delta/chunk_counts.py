"""What the chunks of a tensor add up to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlsparse_store.format.index.records import ChunkCoding

if TYPE_CHECKING:
    from rlsparse_store.codec.chunk import EncodedChunk
    from rlsparse_store.format.dtypes import WordCoding

__all__ = ["ChunkCounts"]


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

    def add(self, chunk: EncodedChunk, coding: WordCoding) -> None:
        """Add a chunk."""
        if chunk.record.coding is ChunkCoding.WHOLE:
            self.moved += chunk.changes
            self.whole_raw += coding.nbytes(chunk.record.length)
            self.whole_stored += chunk.record.stored
        else:
            self.steps = [a + b for a, b in zip(self.steps, chunk.steps, strict=True)]

    def merge(self, other: ChunkCounts) -> None:
        """Add the chunks that ``other`` counts."""
        self.steps = [a + b for a, b in zip(self.steps, other.steps, strict=True)]
        self.moved += other.moved
        self.whole_raw += other.whole_raw
        self.whole_stored += other.whole_stored
