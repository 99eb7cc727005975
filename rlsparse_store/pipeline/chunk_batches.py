"""Many chunks of a delta: some for each thread, and then as many together as a device takes."""

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
"""Bytes of a device's memory that chunks take that are joined at a time: what Python does for a
batch takes some milliseconds, whatever its size."""

BATCH_CHUNKS: Final = 1 << 12
"""Chunks that are joined at a time: each takes a tile of a device's memory, however small it is."""

SOME_BYTES: Final = 1 << 24
"""Bytes of words whose chunks a thread is given at a time: handing a chunk over takes about as long
as opening one that is small."""

STORED_WEIGHT: Final = 16
"""Words that take as long to open as a stored byte does, in bytes, or less."""

STORED_BYTES: Final = 1 << 22
"""Bytes of stored chunks that a thread is given at a time."""


def check_stored_bytes(reader: DeltaReader, threads: int) -> None:
    """Require that all stored bytes of a delta are the ones that were encoded.

    Args:
        reader: The delta.
        threads: Threads to read on.

    Raises:
        ChecksumError: They are not.
    """

    def read(some: Batch[ChunkRecord]) -> None:
        for chunk in some.items:
            reader.stored(chunk)

    chunks = ((chunk, chunk.stored) for chunk in reader.index.chunks)
    for _ in ordered_map(read, batched(chunks, STORED_BYTES), threads):
        pass


Place = TypeVar("Place")


def open_batches(
    decoder: ChunkDecoder, chunks: Iterable[tuple[Place, TensorRecord, ChunkRecord]], threads: int
) -> Iterator[Batch[tuple[Place, OpenChunk]]]:
    """Chunks that are joined together on a device, in order, each with where it goes.

    They are read and decompressed on threads, while what was handed out is being joined.

    Args:
        decoder: Opens them.
        chunks: Where each goes, its tensor and the chunk.
        threads: Threads to open them on.

    Raises:
        FormatError: The delta is damaged.
    """

    def opened(
        some: Batch[tuple[Place, TensorRecord, ChunkRecord]],
    ) -> list[tuple[Place, OpenChunk]]:
        return [(place, decoder.open(t, chunk)) for place, t, chunk in some.items]

    sized = (
        ((place, t, chunk), max(_nbytes(t, chunk), STORED_WEIGHT * chunk.stored))
        for place, t, chunk in chunks
    )
    batch: list[tuple[Place, OpenChunk]] = []
    nbytes = memory = 0
    for done in ordered_map(opened, batched(sized, SOME_BYTES), threads):
        for place, chunk in done:
            batch.append((place, chunk))
            nbytes += _nbytes(chunk.tensor, chunk.chunk)
            memory += _memory(chunk.tensor, chunk.chunk)
            if memory >= BATCH_MEMORY or len(batch) >= BATCH_CHUNKS:
                yield Batch(batch, nbytes)
                batch, nbytes, memory = [], 0, 0
    if batch:
        yield Batch(batch, nbytes)


def _nbytes(t: TensorRecord, chunk: ChunkRecord) -> int:
    """Bytes of a chunk's words."""
    assert t.coding is not None  # noqa: S101 - a tensor with chunks has one
    return t.coding.nbytes(chunk.length)


def _memory(t: TensorRecord, chunk: ChunkRecord) -> int:
    """About how many bytes of a device a chunk takes while it is joined.

    A copy of its words, up to five bits of each that tell its context, and a share of what is
    counted for its tile; of each changed word its step and its streams.
    """
    return _nbytes(t, chunk) + chunk.length * 3 // 4 + sum(chunk.changed) * 4
