"""A lock that could not be taken leaves nothing, and what killed writers left is removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rlsparse_store.errors import OutputError
from rlsparse_store.files import output
from rlsparse_store.files.writer_lock import WriterLock, file_system_time

if TYPE_CHECKING:
    from pathlib import Path


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "full")


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    ended = f".tmp-{output._HOST}-{dead_process()}"
    for name in ("clock-140", "lock-000001.140", "lock-000001"):
        (tmp_path / f".{name}{ended}").touch()
    with WriterLock(tmp_path, tmp_path):
        assert names(tmp_path) == ["lock-000001"]


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_lock_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OutputError, match="no space"), WriterLock(tmp_path, tmp_path):
            pass
    assert names(tmp_path) == []
    with WriterLock(tmp_path, tmp_path):
        pass


def test_without_hard_links_a_lock_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "hardlink_to", full)
        with WriterLock(tmp_path, tmp_path):
            assert names(tmp_path) == ["lock-000001"]
        patched.setattr(type(tmp_path), "write_bytes", full)
        with pytest.raises(OutputError, match="no space"), WriterLock(tmp_path, tmp_path):
            pass
        assert names(tmp_path) == ["lock-000001"]
    with WriterLock(tmp_path, tmp_path):
        assert names(tmp_path) == ["lock-000002"]


@pytest.mark.parametrize("call", ["_numbers", "_create"])
def test_a_lock_that_was_taken_by_halves_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original = getattr(WriterLock, call)

    def fail_afterwards(*arguments: Any) -> Any:  # noqa: ANN401
        found = original(*arguments)
        if (tmp_path / "lock-000001").exists():
            raise OSError(errno.EIO, "broken")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(WriterLock, call, fail_afterwards)
        with pytest.raises(OutputError, match="broken"), WriterLock(tmp_path, tmp_path):
            pass
    with WriterLock(tmp_path, tmp_path):
        assert names(tmp_path) == ["lock-000002"]


def test_without_a_thread_no_lock_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError), WriterLock(tmp_path / ".run", tmp_path):
            pass
    assert names(tmp_path) == []


def test_the_time_of_a_file_system_leaves_nothing(tmp_path: Path) -> None:
    assert file_system_time(tmp_path) > 0
    assert names(tmp_path) == []


def test_a_signal_while_its_thread_starts_is_not_replaced_by_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = WriterLock(tmp_path / "locks", tmp_path)
    thread = lock._toucher

    def interrupted() -> None:
        # As it is between the thread's first step and the moment from which it can be joined.
        monkeypatch.setattr(thread, "_ident", 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), lock:
        pass
