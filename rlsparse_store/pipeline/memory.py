"""Memory in which tensors are decoded: main memory, or a device's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from rlsparse_store.format.words import as_words, to_bytes, widen
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.words import Widening

__all__ = ["Bytes", "MainMemory", "Memory", "MemoryWords"]

Bytes: TypeAlias = Any
"""Bytes in a memory: a NumPy array, or a tensor on a device. One-dimensional, with a length and
slices that share memory."""

MemoryWords: TypeAlias = Any
"""Words of the memory's backend."""


class Memory(Protocol):
    """A memory, and the backend that decodes words in it."""

    @property
    def name(self) -> str:
        """Name of the memory, for messages."""

    @property
    def backend(self) -> Any:  # noqa: ANN401 - a Backend with words in this memory
        """The backend for words in this memory."""

    def supports(self, width: int) -> bool:
        """Return whether the backend decodes words of a width."""

    def session(self) -> AbstractContextManager[None]:
        """Return the context in which a thread uses the memory.

        Raises:
            MemoryError: The memory is exhausted.
        """

    def empty(self, nbytes: int) -> Bytes:
        """Allocate uninitialized bytes."""

    def from_host(self, data: NDArray[np.uint8]) -> Bytes:
        """Copy bytes from main memory."""

    def fill(self, out: Bytes, read: Callable[[NDArray[np.uint8]], None]) -> None:
        """Fill ``out`` with the bytes that ``read`` writes to main memory."""

    def put(self, out: Bytes, data: Bytes) -> None:
        """Copy ``data`` to ``out`` unless they share memory."""

    def leaf_hashes(self, data: Sequence[Bytes]) -> list[NDArray[np.uint64]]:
        """Hash the leaves of each byte string."""

    def words(self, data: Bytes, width: int) -> MemoryWords:
        """View bytes as words."""

    def to_bytes(self, words: MemoryWords, width: int) -> Bytes:
        """View words as bytes."""

    def widen(self, data: Bytes, widening: Widening, out: Bytes) -> None:
        """Widen 16-bit words to float32 words."""


class MainMemory:
    """Main memory. Its bytes are NumPy arrays."""

    name = "the CPU"

    def __init__(self) -> None:
        self.backend = get_backend()

    def supports(self, width: int) -> bool:
        """Accept words of any width."""
        return width > 0

    def session(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        """Allocate uninitialized bytes."""
        return np.empty(nbytes, np.uint8)

    def from_host(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bytes themselves."""
        return data

    def fill(self, out: NDArray[np.uint8], read: Callable[[NDArray[np.uint8]], None]) -> None:
        """Read into ``out``."""
        read(out)

    def put(self, out: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
        """Copy ``data`` to ``out`` unless they share memory."""
        if not np.shares_memory(data, out):
            out[:] = data

    def leaf_hashes(self, data: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint64]]:
        """Hash the leaves of each byte string."""
        return [self.backend.leaf_hashes(part) for part in data]

    def words(self, data: NDArray[np.uint8], width: int) -> MemoryWords:
        """View bytes as words; copy for 4-bit words."""
        return as_words(data, width)

    def to_bytes(self, words: MemoryWords, width: int) -> NDArray[np.uint8]:
        """View words as bytes; copy for 4-bit words."""
        return to_bytes(words, width)

    def widen(self, data: NDArray[np.uint8], widening: Widening, out: NDArray[np.uint8]) -> None:
        """Widen 16-bit words."""
        out.view(np.uint32)[:] = widen(data.view(np.uint16), widening)
