"""Buffers that a thread reuses.

New memory costs a page fault per few kilobytes, which can take longer than the work done in it.
Reused memory is also likely to be in the cache.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.kernels.interface import ChangeList

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scratch", "ScratchBuffer"]


class ScratchBuffer:
    """A buffer that grows on demand. Each :meth:`take` reuses the memory of the one before."""

    def __init__(self) -> None:
        self._bytes: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Return ``nbytes`` uninitialized bytes."""
        if nbytes > self._bytes.size:
            # Untouched pages cost nothing, so a buffer may be larger than needed.
            self._bytes = np.empty(nbytes, np.uint8)
        return self._bytes[:nbytes]


class Scratch(threading.local):
    """Buffers of each thread, for base words, tuned words and changed words."""

    def __init__(self) -> None:
        self.base = ScratchBuffer()
        self.tuned = ScratchBuffer()
        self.changes = ChangeList()
