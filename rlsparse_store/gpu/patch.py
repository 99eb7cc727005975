"""Patching tensors on a device, many chunks at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

import torch

from rlsparse_store.errors import RlsparseError
from rlsparse_store.gpu.chunk_batches import DeviceDecoder
from rlsparse_store.gpu.memory import DeviceMemory
from rlsparse_store.gpu.stream_pool import StreamPool
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, OpenChunk
from rlsparse_store.pipeline.threads import Batch, ordered_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord

__all__ = ["patch_on_device"]


class Target(Protocol):
    """A tensor on a device and the part of a delta that applies to it."""

    @property
    def record(self) -> TensorRecord:
        """The delta's record of the tensor."""

    @property
    def chunks(self) -> list[ChunkRecord]:
        """The delta's chunks of the tensor."""

    @property
    def device_bytes(self) -> torch.Tensor:
        """The tensor's bytes, one-dimensional, without a copy."""

    def extent(self, chunk: ChunkRecord) -> tuple[int, int]:
        """Return the offset of a chunk's first byte in the tensor, and its length in bytes."""


CONCURRENT_BATCHES: Final = 2
"""Batches in progress: while one waits for the device, Python prepares the other."""


def patch_on_device(
    reader: DeltaReader, targets: Sequence[Target], device: torch.device, threads: int
) -> None:
    """Apply a delta to tensors on one device.

    CPU threads read and decompress chunks while the device decodes earlier ones. The caller must
    synchronize the device afterwards.

    Args:
        reader: The delta. Its stored bytes must have been checked.
        targets: The tensors. They must have been compared with the base.
        device: Device of the tensors.
        threads: Number of decompression threads.

    Raises:
        FormatError: The delta is damaged. Earlier writes are correct.
        RlsparseError: The device is out of memory.
    """
    decoder = DeviceDecoder(ChunkDecoder(reader, None), DeviceMemory(device))
    streams = _stream_pool(device)

    def patch(batch: Batch[tuple[Target, OpenChunk]]) -> None:
        with streams.acquire():
            if _patch(decoder, batch.items):
                return
        # Nothing was written yet. Retry chunk by chunk, while the device has no other batch.
        with streams.acquire_all():
            torch.cuda.empty_cache()
            for item in batch.items:
                if not _patch(decoder, [item]):
                    msg = f"{device} is out of memory: it holds the model but no chunk beside it"
                    raise RlsparseError(msg)

    chunks = ((target, target.record, chunk) for target in targets for chunk in target.chunks)
    for _ in ordered_map(patch, decoder.batches(chunks, threads), CONCURRENT_BATCHES):
        pass


@cache
def _stream_pool(device: torch.device) -> StreamPool:
    """Return the streams that all patches of a device share."""
    return StreamPool(device, CONCURRENT_BATCHES)


@dataclass(slots=True)
class _AdjacentChunks:
    """Consecutive chunks of a tensor, which are copied together.

    Attributes:
        target: The tensor.
        start: Offset of the first byte in the tensor.
        stop: Offset after the last byte.
        sizes: Bytes of each chunk.
    """

    target: Target
    start: int
    stop: int
    sizes: list[int]

    @property
    def data(self) -> torch.Tensor:
        """The bytes in the tensor, without a copy."""
        return self.target.device_bytes[self.start : self.stop]


def _find_adjacent(batch: list[tuple[Target, OpenChunk]]) -> list[_AdjacentChunks]:
    found: list[_AdjacentChunks] = []
    for target, opened in batch:
        start, nbytes = target.extent(opened.chunk)
        if not found or found[-1].target is not target or found[-1].stop != start:
            found.append(_AdjacentChunks(target, start, start, []))
        found[-1].sizes.append(nbytes)
        found[-1].stop += nbytes
    return found


def _patch(decoder: DeviceDecoder, batch: list[tuple[Target, OpenChunk]]) -> bool:
    """Patch a batch of chunks; return ``False`` if the device is out of memory."""
    adjacent = _find_adjacent(batch)
    try:
        # Decoded in copies: the model never holds unchecked words.
        copies = [chunks.data.clone() for chunks in adjacent]
        parts = [
            part
            for chunks, copy in zip(adjacent, copies, strict=True)
            for part in torch.split(copy, chunks.sizes)
        ]
        decoder.decode([chunk for _, chunk in batch], parts)
    except torch.OutOfMemoryError:
        return False
    for chunks, copy in zip(adjacent, copies, strict=True):
        chunks.data.copy_(copy)
    return True
