"""Patching tensors that lie on a device, many of their chunks at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

import torch

from rlsparse_store.errors import RlsparseError
from rlsparse_store.gpu.memory import DeviceMemory
from rlsparse_store.gpu.streams import DeviceStreams
from rlsparse_store.pipeline.chunk_batches import open_batches
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, OpenChunk
from rlsparse_store.pipeline.threads import Batch, ordered_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord

__all__ = ["patch_on_device"]


class Target(Protocol):
    """A tensor on a device and what a delta makes of it."""

    @property
    def record(self) -> TensorRecord:
        """What the delta says of it."""

    @property
    def chunks(self) -> list[ChunkRecord]:
        """The chunks that change it."""

    @property
    def device_bytes(self) -> torch.Tensor:
        """Its bytes, one-dimensional, shared with it."""

    def extent(self, chunk: ChunkRecord) -> tuple[int, int]:
        """Return the offset of a chunk's first byte in the tensor, and its length in bytes."""


AT_A_TIME: Final = 2
"""Batches that are joined at a time: while one waits for the device, Python works for the other."""


def patch_on_device(
    reader: DeltaReader, targets: Sequence[Target], device: torch.device, threads: int
) -> None:
    """Change tensors of one device as a delta says.

    Chunks are read and decompressed on threads of the CPU, while those before them are joined on
    the device, which is to be waited for afterwards.

    Args:
        reader: The delta, whose stored bytes were checked.
        targets: The tensors, which were compared with the base.
        device: Where they lie.
        threads: Threads to decompress on.

    Raises:
        FormatError: The delta is damaged. What was written before that is right.
        RlsparseError: The device has no memory for a chunk besides.
    """
    decoder = ChunkDecoder(reader, None, memory=DeviceMemory(device))
    streams = _streams(device)

    def patch(batch: Batch[tuple[Target, OpenChunk]]) -> None:
        with streams.one():
            if _patch(decoder, batch.items):
                return
        # Nothing was written yet: chunk by chunk, and while no other batch is there, it takes less.
        with streams.all():
            torch.cuda.empty_cache()
            for one in batch.items:
                if not _patch(decoder, [one]):
                    msg = f"no memory left on {device} to patch a chunk beside the model"
                    raise RlsparseError(msg)

    chunks = ((target, target.record, chunk) for target in targets for chunk in target.chunks)
    for _ in ordered_map(patch, open_batches(decoder, chunks, threads), AT_A_TIME):
        pass


@cache
def _streams(device: torch.device) -> DeviceStreams:
    """The streams on which batches are joined, of whichever delta."""
    return DeviceStreams(device, AT_A_TIME)


@dataclass(slots=True)
class _ChunkRun:
    """Chunks of a tensor without gaps between them, which are copied at once.

    Attributes:
        target: The tensor.
        start: Place of their first byte in its data.
        stop: Place after their last.
        sizes: Bytes of each.
    """

    target: Target
    start: int
    stop: int
    sizes: list[int]

    @property
    def place(self) -> torch.Tensor:
        """Their bytes where they are, shared with the tensor."""
        return self.target.device_bytes[self.start : self.stop]


def _runs(batch: list[tuple[Target, OpenChunk]]) -> list[_ChunkRun]:
    runs: list[_ChunkRun] = []
    for target, opened in batch:
        start, nbytes = target.extent(opened.chunk)
        if not runs or runs[-1].target is not target or runs[-1].stop != start:
            runs.append(_ChunkRun(target, start, start, []))
        runs[-1].sizes.append(nbytes)
        runs[-1].stop += nbytes
    return runs


def _patch(decoder: ChunkDecoder, batch: list[tuple[Target, OpenChunk]]) -> bool:
    """Patch chunks together, or say that the device's memory does not suffice."""
    runs = _runs(batch)
    try:
        # Decoded beside them: nothing that is not checked is ever in the model.
        copies = [run.place.clone() for run in runs]
        parts = [
            part
            for run, copy in zip(runs, copies, strict=True)
            for part in torch.split(copy, run.sizes)
        ]
        made = decoder.join([chunk for _, chunk in batch], parts)
        for part, (after, _) in zip(parts, made, strict=True):
            decoder.memory.put(part, after)
    except torch.OutOfMemoryError:
        return False
    for run, copy in zip(runs, copies, strict=True):
        run.place.copy_(copy)
    return True
