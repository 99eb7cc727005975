"""Patching tensors that lie on a device, many of their chunks at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rlsparse_store.delta import ChunkDecoder, OpenedChunk, batches, ordered_map
from rlsparse_store.errors import RlsparseError

if TYPE_CHECKING:
    from rlsparse_store.container import ChunkRecord, DeltaReader
    from rlsparse_store.torch.live import Target

__all__ = ["patch_on_device"]


@dataclass(frozen=True, slots=True)
class _Work:
    """A chunk of a tensor in a device's memory."""

    target: Target
    chunk: ChunkRecord

    @property
    def nbytes(self) -> int:
        """Bytes of its words."""
        return self.target.place(self.chunk)[1]

    @property
    def bytes(self) -> torch.Tensor:
        """Its bytes where they are, shared with the tensor."""
        start, nbytes = self.target.place(self.chunk)
        return self.target.device_bytes[start : start + nbytes]


def patch_on_device(
    reader: DeltaReader, targets: list[Target], device: torch.device, threads: int
) -> None:
    """Change tensors of one device as a delta says.

    Chunks are read and decompressed on threads of the CPU, while those before them are joined on
    the device.

    Args:
        reader: The delta, whose stored bytes were checked.
        targets: The tensors, which were compared with the base.
        device: Where they lie.
        threads: Threads to decompress on.

    Raises:
        FormatError: The delta is damaged. What was written before that is right.
        RlsparseError: The device has no memory for a chunk besides.
    """
    from rlsparse_store.frameworks.device import DeviceMemory  # noqa: PLC0415 - needs Triton

    decoder = ChunkDecoder(reader, None, memory=DeviceMemory(device))

    def opened(work: _Work) -> tuple[_Work, OpenedChunk]:
        return work, decoder.open(work.target.record, work.chunk)

    chunks = (_Work(target, chunk) for target in targets for chunk in target.chunks)
    for batch in batches(ordered_map(opened, chunks, threads)):
        if not _patch(decoder, batch):
            # Nothing was written yet: chunk by chunk, it takes less memory.
            torch.cuda.empty_cache()
            for one in batch:
                if not _patch(decoder, [one]):
                    msg = f"no memory left on {device} to patch a chunk beside the model"
                    raise RlsparseError(msg)


def _patch(decoder: ChunkDecoder, batch: list[tuple[_Work, OpenedChunk]]) -> bool:
    """Patch chunks together, or say that the device's memory does not suffice."""
    places = [work.bytes for work, _ in batch]
    try:
        # Decoded beside them: nothing that is not checked is ever in the model.
        made = decoder.join([chunk for _, chunk in batch], [place.clone() for place in places])
    except torch.OutOfMemoryError:
        return False
    for place, (after, _) in zip(places, made, strict=True):
        place.copy_(after)
    return True
