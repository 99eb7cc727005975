"""Copying files, flushed to the disk like everything that is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.files.output import OutputFile, output_errors
from rlsparse_store.files.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["copy_files"]

PIECE: Final = 4 << 20
"""Bytes copied at a time."""


def copy_files(source: Path, names: Sequence[str], target: Path) -> int:
    """Copy files of a folder, following links, and return their bytes.

    Args:
        source: The folder.
        names: Their paths within it.
        target: The folder to copy them to, which is there.

    Raises:
        RlsparseError: One cannot be read.
        OutputError: The target cannot be written.
    """
    copied = 0
    for name in names:
        with output_errors(target / name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        with FileSource(source / name) as original, OutputFile(target / name) as copy:
            for start in range(0, original.nbytes, PIECE):
                copy.write(original.read(start, min(PIECE, original.nbytes - start)), start)
            copied += original.nbytes
    return copied
