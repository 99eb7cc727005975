"""Decoding of whole tensors in a device's memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rlsparse_store.gpu.chunk_batches import DeviceDecoder
from rlsparse_store.gpu.chunk_words import WIDTHS
from rlsparse_store.pipeline.overlay import pieces
from rlsparse_store.pipeline.threads import ordered_map

if TYPE_CHECKING:
    import torch

    from rlsparse_store.format.index.records import TensorRecord
    from rlsparse_store.gpu.memory import DeviceMemory
    from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder
    from rlsparse_store.pipeline.overlay import Overlay, Segment

__all__ = ["is_supported", "read_on_device"]


def is_supported(t: TensorRecord) -> bool:
    """Return whether a device decodes a tensor: its words have a supported width, and stay so."""
    return not t.widening and (t.coding is None or t.coding.width in WIDTHS)


def read_on_device(
    overlay: Overlay, decoder: ChunkDecoder, memory: DeviceMemory, threads: int
) -> torch.Tensor:
    """Return the bytes of a tuned tensor, decoded in a device's memory in batches of chunks.

    Reads all base words first. The threads decompress the next chunks while a batch is decoded.

    Args:
        overlay: A supported tensor. Its source must allow reads on several threads.
        decoder: Opens and checks its chunks.
        memory: The memory.
        threads: Threads to read and to decompress on.

    Raises:
        FormatError: The delta is damaged, or the base is wrong.
        MemoryError: The device is out of memory.
        RlsparseError: A file is truncated or unreadable.
    """
    t, device_decoder = overlay.tensor, DeviceDecoder(decoder, memory)
    with memory.session():
        buffer = memory.empty(t.nbytes)

    def read(piece: Segment) -> None:
        with memory.session():
            part = buffer[piece.start : piece.stop]
            memory.fill(part, partial(overlay.read_source, piece.start))

    for _ in ordered_map(read, pieces(0, overlay.shared_nbytes), threads):
        pass
    chunks = (
        (slice(segment.start, segment.stop), t, segment.chunk)
        for segment in overlay.segments()
        if segment.chunk is not None
    )
    for batch in device_decoder.batches(chunks, threads):
        with memory.session():
            parts = [buffer[part] for part, _ in batch.items]
            device_decoder.decode([chunk for _, chunk in batch.items], parts)
    return buffer
