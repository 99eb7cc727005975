"""The files of one folder, on disk or on the Hub."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from rlsparse_store.files.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rlsparse_store.files.source import Source

__all__ = ["Folder", "LocalFolder", "files_below", "walk_files"]

DEPTH: Final = 6
"""Folders within each other that are searched: ``step_10/policy/weights/model/consolidated/``."""

MOST_FOUND: Final = 20_000
"""Files after which a search ends: a folder with more is no trainer's."""


class Folder(Protocol):
    """The files of one folder, on disk or elsewhere."""

    def names(self) -> list[str]:
        """The names in it."""

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

    def names(self) -> list[str]:
        """The names in it, as :class:`Folder` says."""
        return [path.name for path in self._folder.iterdir()]

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self._folder / name).exists()

    def open(self, name: str) -> FileSource:
        """Open a file, as :class:`Folder` says."""
        return FileSource(self._folder / name)


def files_below(folder: Path, depth: int = DEPTH) -> list[str]:
    """The first paths of :func:`walk_files`, for messages.

    Args:
        folder: The folder.
        depth: Levels of folders to search, the folder itself included.
    """
    return [path for path, _ in zip(walk_files(folder, depth), range(MOST_FOUND), strict=False)]


def walk_files(folder: Path, depth: int) -> Iterator[str]:
    """Paths of the files in a folder and the folders in it, down to a depth.

    Hidden folders are left out, and so are those that may not be read or vanish meanwhile. Links to
    folders are not followed: they may lead in circles.

    Args:
        folder: The folder.
        depth: Levels of folders to search, the folder itself included.

    Raises:
        OSError: A folder cannot be listed for another reason.
    """
    for here, folders, files in os.walk(folder, onerror=_require_listed):
        inside = os.path.relpath(here, folder)
        prefix = "" if inside == "." else inside.replace(os.sep, "/") + "/"
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if prefix.count("/") + 1 >= depth:
            folders.clear()
        yield from (prefix + name for name in sorted(files))


def _require_listed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | PermissionError):
        raise error
