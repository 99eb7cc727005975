"""What encoding does on the device, stage by stage."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import torch

from device.weights import ROW, bits_of
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.gpu.chunk_streams import make_streams
from rlsparse_store.gpu.chunk_words import CodedWords
from rlsparse_store.gpu.coder import BATCH_BYTES, BATCH_MEMORY, RESIDENT_WEIGHT
from rlsparse_store.gpu.context_map import ContextMap
from rlsparse_store.gpu.diff import diff, table_of
from rlsparse_store.gpu.drafter import draft_memory
from rlsparse_store.gpu.hashing import hash_all_on_device
from rlsparse_store.gpu.join import verify_chunks
from rlsparse_store.gpu.split import scatter
from rlsparse_store.pipeline.spans import BLOCK_WORDS, SPAN_BYTES, chunk_extents
from rlsparse_store.pipeline.threads import batched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from device.weights import Tensors
    from rlsparse_store.gpu.chunk_words import ChunkWords
    from rlsparse_store.kernels.interface import Streams

TENSORS: Final = RESIDENT_WEIGHT * BATCH_BYTES // (2 * SPAN_BYTES)
"""Tensors of a group: as many spans as the coder has there at a time of weights on the device."""


class Group:
    """The stages of a group of tensors, each of them a span.

    Chunks are drafted and verified in batches of the coder's memory.

    Args:
        base: Base weights, of which the first ones are taken.
        tuned: Tuned weights.
    """

    def __init__(self, base: Tensors, tuned: Tensors) -> None:
        self._dtype = DTYPES["BF16"]
        self._pairs = [(t, tuned[name]) for name, t in islice(base.items(), TENSORS)]
        self.nbytes = sum(old.nbytes for old, _ in self._pairs)
        self._drafts = [self._draft(batch) for batch in self._batches()]
        # Copies, as a decoder has them.
        self._coded = [
            [
                CodedWords(c.base, d.bounds, d.rows, d.changed, bytes(d.content))
                for c, d in zip(batch, drafts, strict=True)
            ]
            for batch, drafts in zip(self._batches(), self._drafts, strict=True)
        ]
        self._tuned = [[chunk.tuned for chunk in batch] for batch in self._batches()]

    def partition(self) -> None:
        """Diff, contexts, and the ranks and steps of changed words, all on the device.

        The contexts are those that the encoder chooses.
        """
        for batch, drafts in zip(self._batches(), self._drafts, strict=True):
            bits = batch[0].bits
            table = table_of(batch, [draft.rows for draft in drafts])
            bounds = [draft.bounds for draft in drafts]
            scatter(ContextMap.of(table, self._dtype.coding, bounds, bits), bits)

    def split(self) -> None:
        """From words to streams in main memory."""
        for batch in self._batches():
            self._draft(batch)

    def join(self) -> None:
        """From streams in main memory to words, which are compared with those that are there."""
        for coded, tuned in zip(self._coded, self._tuned, strict=True):
            for problem in verify_chunks(coded, tuned, self._dtype.coding):
                if problem is not None:
                    raise problem

    def hashing(self) -> None:
        """The leaf hashes of base and tuned."""
        hash_all_on_device([bits_of(tensor) for pair in self._pairs for tensor in pair])

    def _draft(self, batch: list[ChunkWords]) -> list[Streams]:
        return make_streams(batch, self._dtype.coding, self._dtype.mantissa_bits)

    def _batches(self) -> list[list[ChunkWords]]:
        """Compare the tensors, and cut them into batches of chunks."""
        sized = (
            (chunk, draft_memory(len(chunk.base), chunk.changes.count)) for chunk in self._chunks()
        )
        return [some.items for some in batched(sized, BATCH_MEMORY)]

    def _chunks(self) -> Iterator[ChunkWords]:
        runs = [(_words(old), _words(new)) for old, new in self._pairs]
        compared = diff(runs, self._dtype.coding)
        for run, (old, _) in enumerate(runs):
            for part in chunk_extents(compared.blocks(run, BLOCK_WORDS), BLOCK_WORDS, len(old)):
                row = (ROW, part.start % ROW)
                yield compared.chunk(run, slice(part.start, part.stop), row, part.changes)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.int16)
