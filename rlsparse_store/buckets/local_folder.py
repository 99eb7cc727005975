"""Folders of this package on this machine: parts of objects, deltas to upload, locks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlsparse_store.files.output import staging_folder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["local_folder", "upload_folder"]

CACHE: Final = "RLSPARSE_CACHE"
"""Environment variable: the folder that holds them all."""


def local_folder(name: str) -> Path:
    """The folder for one purpose, which may not exist.

    Args:
        name: The purpose.
    """
    given = os.environ.get(CACHE)
    above = os.environ.get("XDG_CACHE_HOME")
    root = Path(given) if given else Path(above or Path.home() / ".cache") / "rlsparse_store"
    return root / name


def upload_folder() -> AbstractContextManager[Path]:
    """A folder for files to upload, removed at the end of the ``with`` statement.

    Raises:
        OutputError: It cannot be created.
    """
    return staging_folder(local_folder("staging"))
