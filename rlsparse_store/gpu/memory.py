"""Device memory in which tensors are decoded."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from rlsparse_store.format.words import Widening, widen
from rlsparse_store.gpu.chunk_words import WIDTHS
from rlsparse_store.gpu.hashing import hash_all_on_device
from rlsparse_store.gpu.launch import host_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["DeviceMemory", "words_of"]

WIDEN_WORDS: Final = 1 << 22
"""Words widened in one step: limits the memory of their int32 indices to 16 MiB."""

_INTS: Final = {8: torch.int8, 16: torch.int16, 32: torch.int32}


class DeviceMemory:
    """A device's memory. Its bytes are ``torch.uint8`` tensors.

    Inside :meth:`session`, threads work on the stream that was current when the object was created,
    so that the results are ordered for the caller.

    Args:
        device: A CUDA device; the CPU under Triton's interpreter.
    """

    def __init__(self, device: torch.device) -> None:
        self.name = str(device)
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if self._is_cuda else None
        # With its index: on other threads, another device may be the current one.
        self._device = device if self._stream is None else self._stream.device

    def supports(self, width: int) -> bool:
        """Return whether the kernels support a word width."""
        return width in WIDTHS

    @contextmanager
    def session(self) -> Iterator[None]:
        """Work on the stream.

        Raises:
            MemoryError: The device is out of memory.
        """
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                yield
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error

    def empty(self, nbytes: int) -> torch.Tensor:
        """Allocate bytes."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def upload(self, data: NDArray[np.uint8], out: torch.Tensor) -> None:
        """Copy bytes of main memory to ``out``."""
        # copy(): torch warns about arrays that are not writable.
        out.copy_(torch.from_numpy(data.copy()))

    def fill(self, out: torch.Tensor, read: Callable[[NDArray[np.uint8]], None]) -> None:
        """Read into pinned memory, which torch caches, and copy to ``out``."""
        host = host_buffer(len(out), self._device)
        read(host.numpy())
        out.copy_(host, non_blocking=True)

    def leaf_hashes(self, data: Sequence[torch.Tensor]) -> list[NDArray[np.uint64]]:
        """Hash the leaves of several byte strings in one pass."""
        return hash_all_on_device(data)

    def widen(self, data: torch.Tensor, widening: Widening, out: torch.Tensor) -> None:
        """Widen words by a lookup table of all 16-bit words, computed on the CPU."""
        table = _widening_table(widening, self._device)
        halves, wide = data.view(torch.int16), out.view(torch.int32)
        for start in range(0, len(halves), WIDEN_WORDS):
            part = slice(start, start + WIDEN_WORDS)
            indices = halves[part].to(torch.int32) & 0xFFFF
            torch.index_select(table, 0, indices, out=wide[part])


def words_of(data: torch.Tensor, width: int) -> torch.Tensor:
    """View bytes on a device as words of the kernels' signed type."""
    return data.view(_INTS[width])


@cache
def _widening_table(widening: Widening, device: torch.device) -> torch.Tensor:
    """Return the widened value of every 16-bit word."""
    every = widen(np.arange(1 << 16, dtype=np.uint16), widening)
    return torch.from_numpy(every.view(np.int32)).to(device)
