"""Where a tensor's bytes lie while they are made: main memory, or a device's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from rlsparse_store.format.digests import leaf_hashes
from rlsparse_store.format.words import as_words, to_bytes, widen
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.words import Widening

__all__ = ["Bytes", "MainMemory", "Memory", "MemoryWords"]

Bytes: TypeAlias = Any
"""One-dimensional bytes of a memory's own kind: NumPy's, or a tensor on its device. They have a
length, and slices that share them."""

MemoryWords: TypeAlias = Any
"""Words as the memory's backend takes them."""


class Memory(Protocol):
    """A memory, and the backend whose loops run over words in it."""

    @property
    def name(self) -> str:
        """What it is called, for people."""

    @property
    def backend(self) -> Any:  # noqa: ANN401 - a Backend whose words are of the memory's own kind
        """The backend."""

    def takes(self, width: int) -> bool:
        """Whether words of this width can be decoded in it."""

    def working(self) -> AbstractContextManager[None]:
        """What a thread does here, it does within this.

        Raises:
            MemoryError: What was done within needs more than there is.
        """

    def empty(self, nbytes: int) -> Bytes:
        """Bytes with anything in them."""

    def from_main(self, data: NDArray[np.uint8]) -> Bytes:
        """Bytes of main memory, brought here."""

    def fill(self, out: Bytes, read: Callable[[NDArray[np.uint8]], None]) -> None:
        """Fill bytes here with what ``read`` writes to bytes of main memory."""

    def put(self, out: Bytes, data: Bytes) -> None:
        """Copy bytes to their place, unless they were made there."""

    def leaf_hashes(self, data: Sequence[Bytes]) -> list[NDArray[np.uint64]]:
        """The hash of each leaf of several byte strings."""

    def words(self, data: Bytes, width: int) -> MemoryWords:
        """Bytes as words."""

    def to_bytes(self, words: MemoryWords, width: int) -> Bytes:
        """Words as bytes."""

    def widen(self, data: Bytes, widening: Widening, out: Bytes) -> None:
        """Widen 16-bit words to float32 words, twice as many bytes."""


class MainMemory:
    """The CPU's memory, where bytes are arrays of NumPy."""

    name = "the CPU"

    def __init__(self) -> None:
        self.backend = get_backend()

    def takes(self, width: int) -> bool:
        """Words of any width."""
        return width > 0

    def working(self) -> AbstractContextManager[None]:
        """Nothing in particular."""
        return nullcontext()

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        """New bytes."""
        return np.empty(nbytes, np.uint8)

    def from_main(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes themselves."""
        return data

    def fill(self, out: NDArray[np.uint8], read: Callable[[NDArray[np.uint8]], None]) -> None:
        """Read into their place."""
        read(out)

    def put(self, out: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
        """Copy what does not share the place's memory."""
        if not np.shares_memory(data, out):
            out[:] = data

    def leaf_hashes(self, data: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint64]]:
        """The hash of each leaf, string by string."""
        return [leaf_hashes(part) for part in data]

    def words(self, data: NDArray[np.uint8], width: int) -> MemoryWords:
        """A view; a copy for words of 4 bits."""
        return as_words(data, width)

    def to_bytes(self, words: MemoryWords, width: int) -> NDArray[np.uint8]:
        """A view; a copy for words of 4 bits."""
        return to_bytes(words, width)

    def widen(self, data: NDArray[np.uint8], widening: Widening, out: NDArray[np.uint8]) -> None:
        """Widen 16-bit words."""
        out.view(np.uint32)[:] = widen(data.view(np.uint16), widening)
