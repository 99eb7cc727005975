"""One writer at a time: a lock that outlives no writer, on local and on shared file systems.

The protocol is that of ``specs/runs.md``: locks are numbered files, of which the highest number
holds. A number is taken once, since creating an existing file fails, so that of two processes that
take over a stale lock only one succeeds.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rlsparse_store.errors import RunLockedError
from rlsparse_store.files.output import (
    OutputFile,
    draft_of,
    is_running,
    output_errors,
    remove_stale,
    replace_file,
)
from rlsparse_store.files.rename import make_folder
from rlsparse_store.format.names import printable
from rlsparse_store.format.strict_json import StrictJsonError, canonical, parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["STALE_SECONDS", "WriterLock", "file_system_time"]

STALE_SECONDS: Final = 120
"""A lock of another machine that was not touched for this long is stale."""

TOUCH_SECONDS: Final = 15

_LOCK: Final = re.compile(r"lock-(\d{6,12})")
_HELD: Final[set[Path]] = set()
"""Locks that this process holds."""

_TAKING: Final = threading.Lock()
"""Between a lock and its place among those held."""

_LARGEST: Final = 4096
"""Bytes of a lock. A longer one is not a lock."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The lock with the highest number, its fields, and the seconds since its last touch."""

    number: int
    path: Path
    fields: Mapping[str, object]
    age: float

    @property
    def is_here(self) -> bool:
        """Whether its writer runs, or ran, on this machine, where it can be looked for."""
        return self.fields.get("space") == _space()

    @property
    def is_free(self) -> bool:
        """Whether its writer released it or is gone."""
        if self.fields.get("released") is True:
            return True
        process = self.fields.get("process")
        if self.is_here and isinstance(process, int):
            started = self.fields.get("started")
            if not is_running(process) or _start_of(process) != started:
                return True
            # This process may not have been able to release it, for the disk was full.
            with _TAKING:
                return process == os.getpid() and self.path not in _HELD
        return self.age > STALE_SECONDS


def file_system_time(folder: Path) -> float:
    """The time of a folder's file system, which other machines' writes follow too.

    Args:
        folder: A folder that may be written to.
    """
    with draft_of(folder / f"clock-{threading.get_ident()}") as probe:
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


class WriterLock:
    """The lock of the writer of a folder, held within a ``with`` statement.

    Args:
        folder: The folder for the lock's files, which is created if there is none.
        target: What is written, for messages.
        patience: Seconds to wait for a lock of another machine, whose process may be gone: it is
            stale after :data:`STALE_SECONDS`.

    Raises:
        RunLockedError: Another process is writing.
        OutputError: The lock cannot be written.
    """

    def __init__(self, folder: Path, target: object, *, patience: float = 0) -> None:
        self._folder = Path(os.path.abspath(folder))  # noqa: PTH100 - a name that stays the same
        self._target = target
        self._patience = patience
        self._number = 0
        self._ended = threading.Event()
        self._toucher = threading.Thread(target=self._touch, name="writer lock", daemon=True)

    def __enter__(self) -> Self:
        """Take the lock."""
        try:
            # First: where no thread can be started, no lock is taken.
            self._toucher.start()
            with output_errors(self._target):
                make_folder(self._folder)
                remove_stale(self._folder)
                self._take()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock, unless another process took it over."""
        self._end()
        with output_errors(self._target):
            if self._highest_number() == self._number:
                replace_file(self._path(self._number), canonical(_fields(released=True)))

    def _end(self) -> None:
        self._ended.set()
        # A signal may have come while it was being started, when it cannot be joined.
        if self._toucher.is_alive():
            self._toucher.join()
        _HELD.discard(self._path(self._number))

    def require_held(self) -> None:
        """Require that no other process took the lock over, before something is published.

        Raises:
            RunLockedError: One did: this process was suspended for minutes.
        """
        with output_errors(self._target):
            if self._highest_number() != self._number:
                msg = "another process took over writing while this one was suspended; run it again"
                raise RunLockedError(msg, file=self._target)

    def _take(self) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            found = self._find()
            if found is not None and not found.is_free:
                if not found.is_here and time.monotonic() < deadline:
                    time.sleep(1)
                    continue
                raise RunLockedError(_in_use(found.fields), file=self._target)
            number = 1 if found is None else found.number + 1
            with _TAKING:
                if self._create(number):
                    _HELD.add(self._path(number))
                    self._number = number
                    break
        # A number below the highest can be taken where its file was removed meanwhile.
        if self._highest_number() != number:
            _HELD.discard(self._path(number))
            self._path(number).unlink(missing_ok=True)
            msg = "another process began to write at the same moment; run it again"
            raise RunLockedError(msg, file=self._target)
        for other in self._numbers():
            if other < number:
                self._path(other).unlink(missing_ok=True)
        for draft in self._folder.glob(".*"):
            with suppress(FileNotFoundError):
                if file_system_time(self._folder) - draft.stat().st_mtime > STALE_SECONDS:
                    draft.unlink()

    def _create(self, number: int) -> bool:
        """Create the lock of a number with all of its content. False if it exists."""
        path, content = self._path(number), canonical(_fields(released=False))
        with draft_of(self._folder / f"{path.name}.{threading.get_ident()}") as draft:
            try:
                # A killed process of the same number may have left it.
                draft.unlink(missing_ok=True)
                _write(draft, content)
                try:
                    path.hardlink_to(draft)
                except FileExistsError:
                    return False
                except OSError:
                    return _create_in_place(path, content)
            finally:
                draft.unlink(missing_ok=True)
        return True

    def _find(self) -> _Found | None:
        while number := self._highest_number():
            try:
                path = self._path(number)
                modified = path.stat().st_mtime
                with path.open("rb") as file:
                    text = file.read(_LARGEST + 1)
            except FileNotFoundError:
                continue
            return _Found(number, path, _parsed(text), file_system_time(self._folder) - modified)
        return None

    def _numbers(self) -> list[int]:
        names = (_LOCK.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(name[1]) for name in names if name is not None]

    def _highest_number(self) -> int:
        return max(self._numbers(), default=0)

    def _path(self, number: int) -> Path:
        return self._folder / f"lock-{number:06}"

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH_SECONDS):
            # If it is gone, require_held says so.
            with suppress(OSError):
                os.utime(self._path(self._number))


def _write(path: Path, content: bytes) -> None:
    with OutputFile(path) as file:
        file.write(content, 0)


def _create_in_place(path: Path, content: bytes) -> bool:
    """Create a lock where there are no hard links. False if it exists.

    The content follows its file at once, and a reader that finds it empty takes it for another
    machine's.
    """
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    try:
        path.write_bytes(content)
    except OSError:
        # It would keep others waiting.
        path.unlink(missing_ok=True)
        raise
    return True


def _fields(*, released: bool) -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "released": released,
        "space": _space(),
        "started": _start_of(os.getpid()),
    }


def _parsed(text: bytes) -> Mapping[str, object]:
    """The fields of a lock; none of a damaged one, which is stale once it is old."""
    try:
        fields = parse(text, most_objects=1)
    except StrictJsonError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _in_use(fields: Mapping[str, object]) -> str:
    process, host = (printable(str(fields.get(key, "unknown"))) for key in ("process", "host"))
    return f"process {process} on {host} is writing to it; wait until it ends"


def _space() -> str:
    """Where process numbers mean the same: a boot of a machine, and a namespace within it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _start_of(process: int) -> str:
    """When a process started, which tells it from a later one of its number; empty if unknown."""
    try:
        # The second field is a name in parentheses that may hold spaces.
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""
