"""Copying files and flushing them to the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.files.output import OutputFile, output_errors
from rlsparse_store.files.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rlsparse_store.files.source import Source

__all__ = ["copy_files", "copy_source"]

PIECE: Final = 4 << 20
"""Bytes copied per read."""


def copy_files(source: Path, names: Sequence[str], target: Path) -> int:
    """Copy files of a folder, following links, and return their bytes.

    Args:
        source: The folder.
        names: Their paths within it.
        target: The folder to copy them to, which exists.

    Raises:
        RlsparseError: One cannot be read.
        OutputError: The target cannot be written.
    """
    copied = 0
    for name in names:
        with FileSource(source / name) as original:
            copied += copy_source(original, target / name)
    return copied


def copy_source(source: Source, target: Path) -> int:
    """Copy an open file to a new path, whose folders are created, and return its bytes.

    Raises:
        RlsparseError: It cannot be read.
        OutputError: The target cannot be written.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with OutputFile(target) as copy:
        for start in range(0, source.nbytes, PIECE):
            copy.write(source.read(start, min(PIECE, source.nbytes - start)), start)
    return source.nbytes
