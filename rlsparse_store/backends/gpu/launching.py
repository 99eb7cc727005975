"""Launching kernels, and moving what they are told and what they find."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["WIDE", "launch", "on_device", "parts_of", "programs_for", "to_main", "zeros"]

WIDE: Final = 8
"""Warps of kernels that hold much of each item: with four, registers would spill."""

_LAUNCHING: Final = threading.Lock()
"""Triton readies a kernel at its first launch, and lets go of the interpreter while it loads it: a
thread that launches the same kernel meanwhile would find it half ready. Its own interpreter, too,
runs one kernel at a time."""


def launch(kernel: Any, programs: int) -> Callable[..., None]:  # noqa: ANN401 - Triton's
    """A kernel over so many programs; over none it does nothing."""

    def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - the kernel's
        if programs:
            # Triton launches on the current device, whichever the arguments are on.
            device = arguments[0].device
            here = nullcontext() if device.type == "cpu" else torch.cuda.device(device)
            with _LAUNCHING, here:
                kernel[(programs,)](*arguments, **constants)

    return run


def programs_for(items: int, size: int) -> int:
    """Programs that handle so many items, so many each."""
    return -(-items // size)


def on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of a small array on a device. Nothing waits for it."""
    # A copy, for torch shares the memory of arrays and warns of those that cannot be written to.
    return torch.from_numpy(array.copy()).to(device, non_blocking=True)


def zeros(size: int | tuple[int, ...], kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed memory of a device."""
    return torch.zeros(size, dtype=kind, device=device)


def to_main(*tensors: torch.Tensor) -> list[NDArray[Any]]:
    """Copies of tensors of a device in main memory, once everything before them is done."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.numpy().copy() for tensor in tensors]
    pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for copy, tensor in zip(pinned, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in pinned]


def parts_of(sizes: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """The parts of several things, so many items each: whose each is, and which of its parts.

    Args:
        sizes: Items of each thing.
        size: Items of a part.

    Example:
        >>> parts_of(np.array([3, 0, 1]), 2).tolist()
        [[0, 0], [0, 1], [2, 0]]
    """
    numbers = -(-sizes // size)
    owners = np.repeat(np.arange(sizes.size), numbers)
    within = np.arange(owners.size) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    return np.stack([owners, within], 1).astype(np.int32)
