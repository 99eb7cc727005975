"""A delta's files in memory, for both readers: to write a mutant takes longer than to refuse it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import NotFoundError, RlsparseError
from rlsparse_store.files.source import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

NOWHERE: Final = Path("nowhere")
"""What files in memory are called in errors."""


class MemorySource(Source):
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.path = NOWHERE
        self._data = data

    @property
    def nbytes(self) -> int:
        """Their number."""
        return len(self._data)

    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Copy them, as :class:`Source` says."""
        out[:] = np.frombuffer(self.read(offset, out.size), np.uint8)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Copy them, as :class:`Source` says."""
        data = self._data[offset : offset + nbytes]
        if len(data) != nbytes:
            msg = f"ends at byte {len(self._data)}"
            raise RlsparseError(msg, file=self.path)
        return data

    def check_unchanged(self) -> None:
        """Nothing changes them."""

    def close(self) -> None:
        """Nothing is open."""


class MemoryFolder:
    """The folder ``rlsparse`` of a delta, as the library reads it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def names(self) -> list[str]:
        """The names in it."""
        return list(self._files)

    def has(self, name: str) -> bool:
        """Whether it has a file of this name."""
        return name in self._files

    def open(self, name: str) -> Source:
        """Open a file."""
        if name not in self._files:
            msg = "no such file"
            raise NotFoundError(msg, file=name)
        return MemorySource(self._files[name])


class MemoryPath:
    """A delta, its folder or a file of it, as the second decoder uses a path."""

    def __init__(self, files: Mapping[str, bytes], name: str = "") -> None:
        self.name = name
        self.files = files

    def __truediv__(self, name: str) -> MemoryPath:
        """What is of this name in it; the files are all in one folder."""
        return MemoryPath(self.files, name)

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.name in self.files

    is_file = exists

    def stat(self) -> SimpleNamespace:
        """Its size."""
        return SimpleNamespace(st_size=len(self.files[self.name]))

    def open(self, _mode: str) -> io.BytesIO:
        """Open it for reading.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not self.exists():
            raise FileNotFoundError(self.name)
        return io.BytesIO(self.files[self.name])
