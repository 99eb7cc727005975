"""The files of one folder, wherever it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rlsparse_store.files.source import FileSource

if TYPE_CHECKING:
    from pathlib import Path

    from rlsparse_store.files.source import Source

__all__ = ["Folder", "LocalFolder"]


class Folder(Protocol):
    """The files of one folder, on disk or elsewhere."""

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def open(self, name: str) -> Source:
        """Open a file.

        Raises:
            NotFoundError: There is none.
            RlsparseError: It cannot be opened.
        """


class LocalFolder:
    """The files of a folder on disk.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self._folder / name).exists()

    def open(self, name: str) -> FileSource:
        """Open a file, as :class:`Folder` says."""
        return FileSource(self._folder / name)
