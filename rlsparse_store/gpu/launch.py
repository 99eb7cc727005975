"""Launching kernels, and copying their inputs and outputs."""

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
    "NUM_WARPS",
    "firsts_of",
    "host_buffer",
    "launch",
    "num_programs",
    "parts_of",
    "to_device",
    "to_host",
    "zeros",
]

NUM_WARPS: Final = 8
"""Warps of kernels with many live values: with the default of 4, registers would spill."""

_LAUNCH_LOCK: Final = threading.Lock()
"""Triton prepares a kernel at its first launch and releases the GIL meanwhile: another thread would
find it half prepared. Triton's interpreter runs one kernel at a time, too."""

_ALIGNMENT: Final = 64
"""Alignment, in bytes, of arrays that are copied together."""

_DTYPES: Final = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint8): torch.uint8,
}


def launch(kernel: Any, programs: int) -> Callable[..., None]:  # noqa: ANN401 - Triton's
    """Return a function that launches a kernel with this number of programs, unless it is 0."""

    def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - the kernel's
        if programs:
            # Triton launches on the current device, not on that of the arguments.
            device = arguments[0].device
            current = nullcontext() if device.type == "cpu" else torch.cuda.device(device)
            # Loading a kernel may exhaust the device's memory.
            with _memory_errors(), _LAUNCH_LOCK, current:
                kernel[(programs,)](*arguments, **constants)

    return run


def num_programs(items: int, size: int) -> int:
    """Return the number of programs for this number of items, ``size`` items each."""
    return -(-items // size)


def host_buffer(nbytes: int, device: torch.device) -> torch.Tensor:
    """Allocate bytes of main memory for copies to or from a device; pinned, so copies do not block.

    Raises:
        OutOfMemoryError: The memory cannot be pinned.
    """
    pins = device.type == "cuda"
    with _memory_errors():
        # device="cpu": torch's default device may be another one.
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pins)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise the driver's out-of-memory errors, plain ``RuntimeError``, as ``OutOfMemoryError``.

    Raises:
        OutOfMemoryError: Memory is exhausted.
    """
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def to_device(device: torch.device, *arrays: NDArray[Any]) -> list[torch.Tensor]:
    """Copy small arrays to a device, flattened, in one asynchronous transfer."""
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = host_buffer(size, device)
    data = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        data[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    sent = host.to(device, non_blocking=True)
    views = {kind: sent.view(_DTYPES[kind]) for kind in {array.dtype for array in arrays}}
    return [
        views[array.dtype].narrow(0, start // array.itemsize, array.size)
        for start, array in zip(starts, arrays, strict=True)
    ]


def zeros(size: int | tuple[int, ...], kind: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate zeroed memory on a device."""
    return torch.zeros(size, dtype=kind, device=device)


def to_host(*tensors: torch.Tensor) -> list[NDArray[Any]]:
    """Copy tensors to main memory and wait for the copies."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.numpy().copy() for tensor in tensors]
    pinned = [host_buffer(t.nbytes, t.device).view(t.dtype).view(t.shape) for t in tensors]
    for copy, tensor in zip(pinned, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in pinned]


def parts_of(sizes: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Cut several owners into parts of ``size`` items; return each part's owner and number.

    Args:
        sizes: Items of each owner.
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
    """Return, for each part of :func:`parts_of`, the position of its owner's first part."""
    return np.arange(len(parts)) - parts[:, 1]
