"""The memory of a device that runs kernels. Importing this module imports torch and Triton."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.format.words import Widening, widen
from rlsparse_store.gpu.backend import WIDTHS, GpuBackend
from rlsparse_store.gpu.hashing import hash_all_on_device
from rlsparse_store.gpu.launch import main_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["DeviceMemory", "words_of"]

AT_A_TIME: Final = 1 << 22
"""Words widened at a time, so that their places stay within megabytes."""

_INTS: Final = {8: torch.int8, 16: torch.int16, 32: torch.int32}


class DeviceMemory:
    """A device's memory, where bytes are tensors of ``torch.uint8``.

    Within :meth:`working`, threads work on the stream that is current where it is made, so that
    whoever asked finds their work done in order.

    Args:
        device: A CUDA device; under Triton's interpreter, the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.name = str(device)
        self.backend: Any = GpuBackend()
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if self._is_cuda else None
        # With its number: on other threads, another device may be the current one.
        self._device = device if self._stream is None else self._stream.device

    def takes(self, width: int) -> bool:
        """The widths that the kernels take."""
        return width in WIDTHS

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work on the stream.

        Raises:
            MemoryError: The device has no memory left.
        """
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                yield
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error

    def empty(self, nbytes: int) -> torch.Tensor:
        """New bytes."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def from_main(self, data: NDArray[np.uint8]) -> torch.Tensor:
        """A copy on the device."""
        # Torch shares the memory of an array, and warns of arrays that cannot be written to.
        return torch.from_numpy(data.copy()).to(self._device)

    def fill(self, out: torch.Tensor, read: Callable[[NDArray[np.uint8]], None]) -> None:
        """Read into pinned memory, which torch keeps for the next time, and copy from there."""
        host = main_memory(len(out), self._device)
        read(host.numpy())
        out.copy_(host, non_blocking=True)

    def put(self, out: torch.Tensor, data: torch.Tensor) -> None:
        """Copy what does not lie there."""
        if data.data_ptr() != out.data_ptr():
            out.copy_(data)

    def leaf_hashes(self, data: Sequence[torch.Tensor]) -> list[NDArray[np.uint64]]:
        """The hash of each leaf, taken on the device, all of them in one pass."""
        return hash_all_on_device(data)

    def words(self, data: torch.Tensor, width: int) -> torch.Tensor:
        """A view."""
        return words_of(data, width)

    def to_bytes(self, words: torch.Tensor, width: int) -> torch.Tensor:  # noqa: ARG002 - as others
        """A view."""
        return words.view(torch.uint8)

    def widen(self, data: torch.Tensor, widening: Widening, out: torch.Tensor) -> None:
        """Look every 16-bit word up among all of them, widened on the CPU."""
        table = _widened(widening, self._device)
        halves, wide = data.view(torch.int16), out.view(torch.int32)
        for start in range(0, len(halves), AT_A_TIME):
            part = slice(start, start + AT_A_TIME)
            places = halves[part].to(torch.int32) & 0xFFFF
            torch.index_select(table, 0, places, out=wide[part])


def words_of(data: torch.Tensor, width: int) -> torch.Tensor:
    """Bytes on a device as words of this width, as the kernels take them."""
    return data.view(_INTS[width])


@cache
def _widened(widening: Widening, device: torch.device) -> torch.Tensor:
    """Every 16-bit word, widened."""
    every = widen(np.arange(1 << 16, dtype=np.uint16), widening)
    return torch.from_numpy(every.view(np.int32)).to(device)
