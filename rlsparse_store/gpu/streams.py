"""Streams of a device, so that what several threads do on it does not wait for each other."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, nullcontext
from queue import LifoQueue
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DeviceStreams"]


class DeviceStreams:
    """So many streams: as many threads work on the device at a time.

    A thread takes the one that was given back last: what torch keeps of a stream's memory, it only
    keeps for that stream. So they are made once for what is done again and again: what it keeps of
    one that is not used any more is lost until memory runs out. They are made on the thread that
    chose the device: on new ones, the first device is the current one.

    Args:
        device: The device; one that is not CUDA's has no streams, but as many threads at a time.
        number: How many.
    """

    def __init__(self, device: torch.device, number: int) -> None:
        self._number = number
        self._taking_all = threading.Lock()
        self._free: LifoQueue[Any] = LifoQueue()
        for _ in range(number):
            is_cuda = device.type == "cuda"
            self._free.put(torch.cuda.Stream(device) if is_cuda else None)  # type: ignore[no-untyped-call]

    @contextmanager
    def one(self) -> Iterator[None]:
        """Work on one that no other thread works on, once there is one."""
        stream = self._free.get()
        try:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                yield
        finally:
            self._free.put(stream)

    @contextmanager
    def all(self) -> Iterator[None]:
        """Work on one while no other thread works on any. Not to be called while on one."""
        with self._taking_all, ExitStack() as taken:
            for _ in range(self._number):
                taken.enter_context(self.one())
            yield
