"""One process at a time trains into a folder: two would overwrite each other's checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.files.writer_lock import STALE_SECONDS, WriterLock
from rlsparse_store.integrations.trainer.checkpoint_folders import DRAFTS

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FolderLock", "require_free"]

_PATIENCE: Final = STALE_SECONDS + 15
"""Seconds to wait for a process of another machine that may be gone: a job that was killed is
often started again elsewhere at once."""


class FolderLock(WriterLock):
    """The lock of the process that trains into a trainer's folder, held within a ``with`` block.

    Args:
        folder: The folder that holds the checkpoints.

    Raises:
        RunLockedError: Another process holds it.
        OutputError: It cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / DRAFTS, folder, patience=_PATIENCE)


def require_free(folder: Path) -> None:
    """Require that no other process trains into a folder now.

    Raises:
        RunLockedError: One does.
        OutputError: The folder cannot be written to.
    """
    with FolderLock(folder):
        pass
