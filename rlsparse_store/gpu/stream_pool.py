"""A pool of CUDA streams, one per thread that works on a device."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, nullcontext
from queue import LifoQueue
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["StreamPool"]


class StreamPool:
    """A fixed number of CUDA streams, which limits the threads that use a device.

    Torch caches freed memory per stream. So the pool lives as long as the process, and a thread
    gets the stream that was released last. Streams are created on the thread that chose the device,
    because on new threads the first device is the current one.

    Args:
        device: The device. Other devices than CUDA have no streams, only the limit of threads.
        number: Number of streams.
    """

    def __init__(self, device: torch.device, number: int) -> None:
        self._number = number
        self._all_lock = threading.Lock()
        self._free: LifoQueue[Any] = LifoQueue()
        for _ in range(number):
            is_cuda = device.type == "cuda"
            self._free.put(torch.cuda.Stream(device) if is_cuda else None)  # type: ignore[no-untyped-call]

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Work on a free stream; wait until there is one."""
        stream = self._free.get()
        try:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                yield
        finally:
            self._free.put(stream)

    @contextmanager
    def acquire_all(self) -> Iterator[None]:
        """Work on one stream while no other thread works on any. The caller must hold none."""
        with self._all_lock, ExitStack() as acquired:
            for _ in range(self._number):
                acquired.enter_context(self.acquire())
            yield
