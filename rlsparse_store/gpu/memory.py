"""Device memory in which tensors are decoded."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import torch

from rlsparse_store.gpu.hashing import hash_all_on_device
from rlsparse_store.gpu.launch import host_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DeviceMemory", "words_of"]

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


def words_of(data: torch.Tensor, width: int) -> torch.Tensor:
    """View bytes on a device as words of the kernels' signed type."""
    return data.view(_INTS[width])
