"""Batches of chunks: small ones to open on threads, large ones to decode on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from rlsparse_store.pipeline.threads import Batch, batched, ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord
    from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, OpenChunk

__all__ = ["check_stored_bytes", "open_batches"]

BATCH_MEMORY: Final = 1 << 29
"""Device memory of the chunks of a batch. Each batch costs milliseconds in Python at any size."""

BATCH_CHUNKS: Final = 1 << 12
"""Maximum number of chunks in a batch. Each takes at least one tile of device memory."""

TASK_BYTES: Final = 1 << 24
"""Bytes of words whose chunks one task opens. Submitting a task takes about as long as opening a
small chunk."""

STORED_WEIGHT: Final = 16
"""Weight of a stored byte in the size of a task, relative to a byte of words."""

STORED_BYTES: Final = 1 << 22
"""Stored bytes that one task checks."""


def check_stored_bytes(reader: DeltaReader, threads: int) -> None:
    """Check the checksums of all stored bytes of a delta.

    Args:
        reader: The delta.
        threads: Threads to read on.

    Raises:
        ChecksumError: A checksum differs.
    """

    def read(batch: Batch[ChunkRecord]) -> None:
        for chunk in batch.items:
            reader.stored(chunk)

    chunks = ((chunk, chunk.stored) for chunk in reader.index.chunks)
    for _ in ordered_map(read, batched(chunks, STORED_BYTES), threads):
        pass


Target = TypeVar("Target")


def open_batches(
    decoder: ChunkDecoder, chunks: Iterable[tuple[Target, TensorRecord, ChunkRecord]], threads: int
) -> Iterator[Batch[tuple[Target, OpenChunk]]]:
    """Open chunks on threads, and yield them in order, in batches for a device.

    The threads read and decompress the next chunks while the caller decodes a batch.

    Args:
        decoder: Opens the chunks.
        chunks: Tuples of target, tensor and chunk. Each target is returned with its chunk.
        threads: Threads to open chunks on.

    Raises:
        FormatError: The delta is damaged.
    """

    def open_batch(
        batch: Batch[tuple[Target, TensorRecord, ChunkRecord]],
    ) -> list[tuple[Target, OpenChunk]]:
        return [(target, decoder.open(t, chunk)) for target, t, chunk in batch.items]

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
