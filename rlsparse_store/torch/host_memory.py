"""Main memory for many tensors, from which a device copies fast."""

from __future__ import annotations

import warnings
from typing import Final

import torch

__all__ = ["HostSlabs"]

SLAB_BYTES: Final = 1 << 30
"""Bytes of a slab of main memory, which small tensors share."""

ALIGNMENT: Final = 64
"""Alignment of tensors in a slab, in bytes."""

_BYTE: Final = torch.uint8


class HostSlabs:
    """An allocator of main memory for many tensors, pinned if there is a CUDA device.

    Tensors share large slabs because torch rounds each pinned allocation up to a power of two. If
    pinning fails, memory is allocated without it.

    Args:
        nbytes: Bytes of all tensors.
    """

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._slab = torch.empty(0, dtype=_BYTE, device="cpu")
        self._pins = torch.cuda.is_available()

    def take(self, nbytes: int) -> torch.Tensor:
        """Allocate memory for a tensor."""
        if nbytes > len(self._slab):
            size = max(nbytes, min(SLAB_BYTES, self._left))
            self._slab = self._pinned(size) if self._pins else self._unpinned(size)
        taken = self._slab[:nbytes]
        self._slab = self._slab[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        self._left -= nbytes
        return taken

    def _pinned(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=_BYTE, device="cpu", pin_memory=True)
        except RuntimeError as error:
            # Not only for a lack of memory. Errors of CUDA have lines of general advice.
            cause = str(error).partition("\n")[0]
            msg = f"cannot pin more main memory, so copies to and from a device are slower: {cause}"
            warnings.warn(msg, RuntimeWarning, stacklevel=5)
            self._pins = False
            return self._unpinned(nbytes)

    @staticmethod
    def _unpinned(nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=_BYTE, device="cpu")
