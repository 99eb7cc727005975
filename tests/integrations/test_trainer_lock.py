"""The lock of the process that trains into a folder, where another machine holds it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from rlsparse_store.errors import RunLockedError
from rlsparse_store.files.writer_lock import STALE_SECONDS
from rlsparse_store.integrations.trainer import folder_lock
from rlsparse_store.integrations.trainer.checkpoint_folders import DRAFTS, remove_drafts
from rlsparse_store.integrations.trainer.folder_lock import FolderLock, require_free

if TYPE_CHECKING:
    from pathlib import Path


def elsewhere(folder: Path, age: float) -> Path:
    """Write the lock of a process of another machine, touched this many seconds ago."""
    lock = folder / DRAFTS / "lock-000001"
    lock.parent.mkdir(parents=True)
    fields = {"host": "other", "process": 1, "released": False, "space": "other", "started": "1"}
    lock.write_text(json.dumps(fields, separators=(",", ":")))
    os.utime(lock, (time.time() - age,) * 2)
    return lock


def test_a_process_of_another_machine_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    lock = elsewhere(tmp_path, STALE_SECONDS - 2)
    with FolderLock(tmp_path):
        assert not lock.exists()


def test_one_that_goes_on_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, 0)
    monkeypatch.setattr(folder_lock, "_PATIENCE", 1)
    with pytest.raises(RunLockedError, match="process 1 on other is writing to it"):
        require_free(tmp_path)


def test_drafts_are_removed_and_the_lock_stays(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        (tmp_path / DRAFTS / "200").mkdir()
        remove_drafts(tmp_path)
        assert [path.name for path in (tmp_path / DRAFTS).iterdir()] == ["lock-000001"]
        # This process holds it.
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
            require_free(tmp_path)
    require_free(tmp_path)
