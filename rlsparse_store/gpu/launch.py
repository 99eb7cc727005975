"""Launching kernels, and moving what they are told and what they find."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = [
    "WIDE",
    "firsts_of",
    "launch",
    "main_memory",
    "on_device",
    "parts_of",
    "programs_for",
    "to_main",
    "zeros",
]

WIDE: Final = 8
"""Warps of kernels that hold much of each item: with four, registers would spill."""

_LAUNCHING: Final = threading.Lock()
"""Triton readies a kernel at its first launch, and lets go of the interpreter while it loads it: a
thread that launches the same kernel meanwhile would find it half ready. Its own interpreter, too,
runs one kernel at a time."""

_APART: Final = 64
"""What divides the place of each of several arrays that are sent together."""

_KINDS: Final = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint8): torch.uint8,
}


def launch(kernel: Any, programs: int) -> Callable[..., None]:  # noqa: ANN401 - Triton's
    """A kernel over so many programs; over none it does nothing."""

    def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - the kernel's
        if programs:
            # Triton launches on the current device, whichever the arguments are on.
            device = arguments[0].device
            here = nullcontext() if device.type == "cpu" else torch.cuda.device(device)
            # Memory may run out while Triton loads a kernel.
            with _memory_errors(), _LAUNCHING, here:
                kernel[(programs,)](*arguments, **constants)

    return run


def programs_for(items: int, size: int) -> int:
    """Programs that handle so many items, so many each."""
    return -(-items // size)


def main_memory(nbytes: int, device: torch.device) -> torch.Tensor:
    """Main memory that a device copies from or to, as bytes: pinned, for others the driver waits.

    Raises:
        OutOfMemoryError: So much cannot be pinned.
    """
    pins = device.type == "cuda"
    with _memory_errors():
        # Wherever torch makes tensors by default.
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pins)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Tell by their kind that memory ran out: the driver's refusals come without one.

    Raises:
        OutOfMemoryError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def on_device(device: torch.device, *arrays: NDArray[Any]) -> list[torch.Tensor]:
    """Copies of small arrays on a device, flat, sent there together. Nothing waits for them."""
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _APART) * _APART
    host = main_memory(size, device)
    data = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        data[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    sent = host.to(device, non_blocking=True)
    views = {kind: sent.view(_KINDS[kind]) for kind in {array.dtype for array in arrays}}
    return [
        views[array.dtype].narrow(0, start // array.itemsize, array.size)
        for start, array in zip(starts, arrays, strict=True)
    ]


def zeros(size: int | tuple[int, ...], kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed memory of a device."""
    return torch.zeros(size, dtype=kind, device=device)


def to_main(*tensors: torch.Tensor) -> list[NDArray[Any]]:
    """Copies of tensors of a device in main memory, once everything before them is done."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.numpy().copy() for tensor in tensors]
    pinned = [main_memory(t.nbytes, t.device).view(t.dtype).view(t.shape) for t in tensors]
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


def firsts_of(parts: NDArray[np.int32]) -> NDArray[np.int64]:
    """The place of the first part of each part's owner, as :func:`parts_of` lists them."""
    return np.arange(len(parts)) - parts[:, 1]
