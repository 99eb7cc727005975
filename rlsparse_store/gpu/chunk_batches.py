"""Batches of chunks: opened on CPU threads, and decoded on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from rlsparse_store.gpu.chunk_words import CodedWords
from rlsparse_store.gpu.join import join_chunks
from rlsparse_store.gpu.memory import words_of
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord
    from rlsparse_store.gpu.memory import DeviceMemory
    from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, OpenChunk

__all__ = ["DeviceDecoder"]

BATCH_MEMORY: Final = 1 << 29
"""Device memory of the chunks of a batch. Each batch costs milliseconds in Python at any size."""

BATCH_CHUNKS: Final = 1 << 12
"""Maximum number of chunks in a batch. Each takes at least one tile of device memory."""

TASK_BYTES: Final = 1 << 24
"""Bytes of words whose chunks one task opens. Submitting a task takes about as long as opening a
small chunk."""

STORED_WEIGHT: Final = 16
"""Weight of a stored byte in the size of a task, relative to a byte of words."""

Target = TypeVar("Target")


class DeviceDecoder:
    """Decodes batches of chunks on a device, with the checks of :class:`ChunkDecoder`.

    Args:
        decoder: Opens and checks the chunks.
        memory: Memory of the words.

    Attributes:
        memory: Memory of the words.
    """

    def __init__(self, decoder: ChunkDecoder, memory: DeviceMemory) -> None:
        self._decoder = decoder
        self.memory = memory

    def batches(
        self, chunks: Iterable[tuple[Target, TensorRecord, ChunkRecord]], threads: int
    ) -> Iterator[Batch[tuple[Target, OpenChunk]]]:
        """Open chunks on threads, and yield them in order, in batches for :meth:`decode`.

        The threads read and decompress the next chunks while the caller decodes a batch.

        Args:
            chunks: Tuples of target, tensor and chunk. Each target is returned with its chunk.
            threads: Threads to open chunks on.

        Raises:
            FormatError: The delta is damaged.
        """

        def open_batch(
            batch: Batch[tuple[Target, TensorRecord, ChunkRecord]],
        ) -> list[tuple[Target, OpenChunk]]:
            return [(target, self._decoder.open(t, chunk)) for target, t, chunk in batch.items]

        sized = (
            ((target, t, chunk), max(_nbytes(t, chunk), STORED_WEIGHT * chunk.stored))
            for target, t, chunk in chunks
        )
        batch: list[tuple[Target, OpenChunk]] = []
        nbytes = memory = 0
        for task_chunks in ordered_map(open_batch, batched(sized, TASK_BYTES), threads):
            for target, chunk in task_chunks:
                batch.append((target, chunk))
                nbytes += _nbytes(chunk.tensor, chunk.chunk)
                memory += _memory(chunk.tensor, chunk.chunk)
                if memory >= BATCH_MEMORY or len(batch) >= BATCH_CHUNKS:
                    yield Batch(batch, nbytes)
                    batch, nbytes, memory = [], 0, 0
        if batch:
            yield Batch(batch, nbytes)

    def decode(self, chunks: Sequence[OpenChunk], data: Sequence[torch.Tensor]) -> None:
        """Decode a batch of chunks, in place.

        Args:
            chunks: The chunks.
            data: The source's bytes of each chunk, which the tuned bytes replace.

        Raises:
            FormatError: The delta is damaged, or ``data`` is from a wrong base.
            OutOfMemoryError: The device is out of memory.
        """
        deltas = [i for i, chunk in enumerate(chunks) if chunk.whole is None]
        if self._decoder.verify:
            leaves = self.memory.leaf_hashes([data[i] for i in deltas])
            for i, chunk_leaves in zip(deltas, leaves, strict=True):
                self._decoder.check_base(chunks[i].tensor, chunks[i].chunk, chunk_leaves)
        for coding in {chunks[i].coding for i in deltas}:
            self._join([(chunks[i], data[i]) for i in deltas if chunks[i].coding == coding], coding)
        for chunk, out in zip(chunks, data, strict=True):
            if chunk.whole is not None:
                self.memory.upload(chunk.whole, out)
        if self._decoder.verify:
            leaves = self.memory.leaf_hashes(data)
            for chunk, chunk_leaves in zip(chunks, leaves, strict=True):
                self._decoder.check_result(chunk.tensor, chunk.chunk, chunk_leaves)

    def _join(self, chunks: list[tuple[OpenChunk, torch.Tensor]], coding: WordCoding) -> None:
        """Decode delta chunks of one word coding, in place."""
        coded = [
            CodedWords(
                words_of(data, coding.width),
                np.array(chunk.chunk.bounds, np.uint64),
                chunk.rows,
                list(chunk.chunk.changed),
                chunk.content,
            )
            for chunk, data in chunks
        ]
        problems = join_chunks(coded, coding)
        for (chunk, _), problem in zip(chunks, problems, strict=True):
            if problem is not None:
                with self._decoder.error_context(chunk.tensor):
                    raise problem


def _nbytes(t: TensorRecord, chunk: ChunkRecord) -> int:
    """Return the size of a chunk's words in bytes."""
    assert t.coding is not None  # noqa: S101 - a tensor with chunks has one
    return t.coding.nbytes(chunk.length)


def _memory(t: TensorRecord, chunk: ChunkRecord) -> int:
    """Estimate the device memory of a chunk during decoding, in bytes.

    Per word: a copy, up to five bits of its context, and a share of its tile's counts. Per changed
    word: its step and its part of the streams.
    """
    return _nbytes(t, chunk) + chunk.length * 3 // 4 + sum(chunk.changed) * 4
