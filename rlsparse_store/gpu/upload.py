"""Spans on their way to a device: read into main memory, then copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from rlsparse_store.files.memory_checkpoint import TensorsSource
from rlsparse_store.frameworks.torch import LiveTensor, ReadableTensor
from rlsparse_store.gpu.chunk_table import ALIGNMENT
from rlsparse_store.gpu.drafter import DeviceSpan
from rlsparse_store.gpu.launch import main_memory

if TYPE_CHECKING:
    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.pipeline.spans import Span

__all__ = ["HostSpan", "lies_on"]

CAST_WORDS: Final = 1 << 21
"""Words that are rounded at a time, each taking some 40 bytes of the device."""


def lies_on(device: torch.device, checkpoint: Checkpoint, tensor: TensorRef) -> bool:
    """Whether a tensor of a checkpoint is on a device already, where kernels take it."""
    live = _live(checkpoint, tensor)
    if not isinstance(live, LiveTensor) or live.data.device != device:
        return False
    return live.data.data_ptr() % ALIGNMENT == 0


@dataclass(frozen=True, slots=True)
class HostSpan:
    """A span whose bytes were read: those of live tensors are views of them.

    Attributes:
        span: The span.
        old: The base's bytes.
        new: The tuned bytes, in their own dtype.
    """

    span: Span
    old: torch.Tensor
    new: torch.Tensor

    @classmethod
    def read(
        cls, span: Span, base: Checkpoint, tuned: Checkpoint, device: torch.device
    ) -> HostSpan:
        """Read a span's bytes into memory that a device copies from.

        Args:
            span: The span.
            base: The base.
            tuned: The tuned checkpoint.
            device: The device.

        Raises:
            RlsparseError: A checkpoint cannot be read.
            OutOfMemoryError: So much memory cannot be pinned.
        """
        source = span.plan.source
        assert source is not None  # noqa: S101 - others are not for a device
        old = _bytes(base, source, span.start, min(span.stop, source.nbytes), device)
        scale = 2 if span.plan.is_cast else 1
        place = scale * span.start, scale * span.tuned_stop
        return cls(span, old, _bytes(tuned, span.plan.tuned, *place, device))

    def upload_bytes(self, device: torch.device) -> int:
        """Bytes of the device that :meth:`upload` takes."""
        old = 0 if self.old.device == device else self.old.numel()
        if self.span.plan.is_cast:
            return old + self.new.numel() // 2
        return old + (0 if self.new.device == device else self.new.numel())

    def upload(self, device: torch.device) -> DeviceSpan:
        """Copy it to the device, and round its words there if the plan says so.

        Raises:
            OutOfMemoryError: The device has no memory for it.
        """
        cast = self.span.plan.is_cast
        new = _rounded(self.new, device) if cast else _moved(self.new, device)
        return DeviceSpan(self.span, _moved(self.old, device), new)


def _live(checkpoint: Checkpoint, tensor: TensorRef) -> ReadableTensor | None:
    """The tensor itself, if it is in memory."""
    source = checkpoint.files[tensor.file].source
    live = source.tensors.get(tensor.name) if isinstance(source, TensorsSource) else None
    return live if isinstance(live, ReadableTensor) else None


def _bytes(
    checkpoint: Checkpoint, tensor: TensorRef, start: int, stop: int, device: torch.device
) -> torch.Tensor:
    live = _live(checkpoint, tensor)
    if live is not None:
        return live.data[start:stop]
    host = main_memory(max(0, stop - start), device)
    checkpoint.read_into(tensor, start, host.numpy())
    return host


def _moved(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    return data.to(device, non_blocking=True)


def _rounded(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bytes of float32 words as those of the nearest bfloat16, ties to even; a NaN stays a NaN."""
    words = data.view(torch.int32)
    narrow = torch.empty(words.shape, dtype=torch.int16, device=device)
    # Piece by piece, so that the wide words are never all on the device.
    for start in range(0, len(words), CAST_WORDS):
        part = slice(start, start + CAST_WORDS)
        wide = _moved(words[part], device).to(torch.int64) & 0xFFFFFFFF
        rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
        is_nan = (wide & 0x7FFFFFFF) > 0x7F800000
        narrow[part] = torch.where(is_nan, (wide >> 16) | 0x40, rounded)
    return narrow.view(torch.uint8)
