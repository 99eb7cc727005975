"""Reading spans into main memory and copying them to a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from rlsparse_store.files.memory_checkpoint import TensorsSource
from rlsparse_store.frameworks.torch import LiveTensor
from rlsparse_store.gpu.chunk_table import ALIGNMENT
from rlsparse_store.gpu.drafter import DeviceSpan
from rlsparse_store.gpu.launch import host_buffer

if TYPE_CHECKING:
    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.pipeline.spans import Span

__all__ = ["HostSpan", "is_on_device"]

CAST_WORDS: Final = 1 << 21
"""Words rounded in one step, at about 40 bytes of device memory each."""


def is_on_device(device: torch.device, checkpoint: Checkpoint, tensor: TensorRef) -> bool:
    """Return whether a tensor is on a device and aligned for the kernels."""
    live = _live(checkpoint, tensor)
    if live is None or live.data.device != device:
        return False
    return (live.data.data_ptr() + _place(checkpoint, tensor)) % ALIGNMENT == 0


@dataclass(frozen=True, slots=True)
class HostSpan:
    """The bytes of a span, in main memory or as views of tensors in memory.

    Attributes:
        span: The span.
        old: The base's bytes.
        new: The tuned bytes, before a cast.
    """

    span: Span
    old: torch.Tensor
    new: torch.Tensor

    @classmethod
    def read(
        cls, span: Span, base: Checkpoint, tuned: Checkpoint, device: torch.device
    ) -> HostSpan:
        """Read a span's bytes into pinned memory.

        Args:
            span: The span.
            base: The base.
            tuned: The tuned checkpoint.
            device: The device.

        Raises:
            RlsparseError: A checkpoint cannot be read.
            OutOfMemoryError: The memory cannot be pinned.
        """
        source = span.plan.source
        assert source is not None  # noqa: S101 - the CPU encodes spans without a source
        old = _read(base, source, span.start, min(span.stop, source.nbytes), device)
        scale = 2 if span.plan.is_cast else 1
        new = _read(tuned, span.plan.tuned, scale * span.start, scale * span.tuned_stop, device)
        return cls(span, old, new)

    def upload_bytes(self, device: torch.device) -> int:
        """Return the bytes of device memory that :meth:`upload` allocates."""
        old = 0 if self.old.device == device else self.old.numel()
        if self.span.plan.is_cast:
            return old + self.new.numel() // 2
        return old + (0 if self.new.device == device else self.new.numel())

    def upload(self, device: torch.device) -> DeviceSpan:
        """Copy the words to the device and round them there if the plan is a cast.

        Raises:
            OutOfMemoryError: The device is out of memory.
        """
        cast = self.span.plan.is_cast
        new = _round_to_bf16(self.new, device) if cast else _to_device(self.new, device)
        return DeviceSpan(self.span, _to_device(self.old, device), new)


def _live(checkpoint: Checkpoint, tensor: TensorRef) -> LiveTensor | None:
    """Return the tensor if it is in memory."""
    source = checkpoint.files[tensor.file].source
    live = source.tensors.get(tensor.name) if isinstance(source, TensorsSource) else None
    return live if isinstance(live, LiveTensor) else None


def _place(checkpoint: Checkpoint, tensor: TensorRef) -> int:
    """Return the first byte of a slab in its tensor; 0 for a whole tensor."""
    return tensor.offset - checkpoint.tensors[tensor.name].offset


def _read(
    checkpoint: Checkpoint, tensor: TensorRef, start: int, stop: int, device: torch.device
) -> torch.Tensor:
    live = _live(checkpoint, tensor)
    if live is not None:
        place = _place(checkpoint, tensor)
        return live.data[place + start : place + stop]
    host = host_buffer(max(0, stop - start), device)
    checkpoint.read_into(tensor, start, host.numpy())
    return host


def _to_device(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    return data.to(device, non_blocking=True)


def _round_to_bf16(data: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Round float32 to the nearest bfloat16, ties to even; NaN stays NaN."""
    words = data.view(torch.int32)
    narrow = torch.empty(words.shape, dtype=torch.int16, device=device)
    # In steps, so that the float32 words are never all on the device.
    for start in range(0, len(words), CAST_WORDS):
        part = slice(start, start + CAST_WORDS)
        wide = _to_device(words[part], device).to(torch.int64) & 0xFFFFFFFF
        rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
        is_nan = (wide & 0x7FFFFFFF) > 0x7F800000
        narrow[part] = torch.where(is_nan, (wide >> 16) | 0x40, rounded)
    return narrow.view(torch.uint8)
