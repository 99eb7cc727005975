"""The words of a task on their way to a device: read into main memory first, then placed there."""

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
    from rlsparse_store.pipeline.coder import SpanTask

__all__ = ["ReadTask", "lies_on"]

CAST_WORDS: Final = 1 << 21
"""Words that are rounded at a time, each taking some 40 bytes of the device."""


def lies_on(device: torch.device, checkpoint: Checkpoint, tensor: TensorRef) -> bool:
    """Whether a tensor of a checkpoint is on a device already, where kernels take it."""
    live = _live(checkpoint, tensor)
    if not isinstance(live, LiveTensor) or live.data.device != device:
        return False
    return live.data.data_ptr() % ALIGNMENT == 0


@dataclass(frozen=True, slots=True)
class ReadTask:
    """A task whose bytes were read: those of tensors that live are views of them.

    Attributes:
        task: The task.
        old: The base's bytes.
        new: The tuned bytes of each span, in their own dtype.
    """

    task: SpanTask
    old: torch.Tensor
    new: list[torch.Tensor]

    @classmethod
    def of(
        cls, task: SpanTask, base: Checkpoint, device: torch.device, old: torch.Tensor | None = None
    ) -> ReadTask:
        """Read a task's bytes from where they are, into memory that a device copies from.

        Args:
            task: The task.
            base: The base.
            device: The device.
            old: The base's bytes, if they were read.

        Raises:
            RlsparseError: A checkpoint cannot be read.
            OutOfMemoryError: So much memory cannot be pinned.
        """
        first = task.spans[0]
        source = first.plan.source
        assert source is not None  # noqa: S101 - others are not for a device
        if old is None:
            old = _bytes(base, source, first.start, min(first.stop, source.nbytes), device)
        new = []
        for span, tuned in zip(task.spans, task.tuned, strict=True):
            scale = 2 if span.plan.is_cast else 1
            place = scale * span.start, scale * span.tuned_stop
            new.append(_bytes(tuned, span.plan.tuned, *place, device))
        return cls(task, old, new)

    def brought(self, device: torch.device) -> int:
        """Bytes that it takes of the device, once it is placed."""
        return sum(
            part.numel() // (2 if is_cast else 1)
            for part, is_cast in [(self.old, False), *self._new()]
            if is_cast or part.device != device
        )

    def placed(self, device: torch.device) -> list[DeviceSpan]:
        """Its spans on the device, where their words are rounded if they are to be.

        Raises:
            OutOfMemoryError: The device has no memory for them.
        """
        old = _moved(self.old, device)
        return [
            DeviceSpan(span, old, _rounded(part, device) if is_cast else _moved(part, device))
            for span, (part, is_cast) in zip(self.task.spans, self._new(), strict=True)
        ]

    def _new(self) -> list[tuple[torch.Tensor, bool]]:
        """The tuned bytes of each span, and whether they are to be rounded."""
        casts = [span.plan.is_cast for span in self.task.spans]
        return list(zip(self.new, casts, strict=True))


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
