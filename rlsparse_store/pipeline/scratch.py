"""Memory that a thread uses again for its next piece of work.

Fresh memory costs a page fault for every few kilobytes, which can take longer than what is done
in it; and what was just used is still in the processor's cache.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scratch", "ScratchBuffer"]


class ScratchBuffer:
    """Bytes that grow as they are needed. What was handed out before is overwritten."""

    def __init__(self) -> None:
        self._bytes: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """``nbytes`` bytes with anything in them."""
        if nbytes > self._bytes.size:
            # Memory that is never touched costs nothing, so what is too much here is free.
            self._bytes = np.empty(nbytes, np.uint8)
        return self._bytes[:nbytes]


class Scratch(threading.local):
    """A thread's buffers: for base words and for tuned words."""

    def __init__(self) -> None:
        self.base = ScratchBuffer()
        self.tuned = ScratchBuffer()
