"""An audit hook that lists what a process does and should not: run, import, write, call up."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

PROCESSES: Final = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"),
        *("pty.spawn", "subprocess.Popen", "webbrowser.open", "os.startfile"),
    )
)
PICKLES: Final = frozenset(("pickle.find_class", "code.__new__"))
PLACES: Final = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
}
"""Events that change the file system, and which of their arguments are the places changed."""

FOLDERS: Final = {
    "os.chmod": (2,),
    "os.chown": (3,),
    "os.link": (3,),
    "os.mkdir": (2,),
    "os.remove": (1,),
    "os.rename": (2, 3),
    "os.rmdir": (1,),
    "os.symlink": (2,),
    "os.utime": (3,),
}
"""The open folders that these places are relative to, if they are."""

WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MAKERS: Final = ("dataclasses.py", "collections/__init__.py", "typing.py", "enum.py")
"""Modules of the standard library that run text of their own to make classes."""


class Watch:
    """Lists what the process does that it should not, from :meth:`install` on.

    Args:
        writable: Folders below which it may write.
        port: The only port of this machine that it may call up.

    Attributes:
        violations: What it did, a line each.
        events: How many events were looked at.
    """

    def __init__(self, writable: Iterable[Path], port: int) -> None:
        self.violations: list[str] = []
        self.events = 0
        self._writable = tuple(os.path.realpath(path) + os.sep for path in writable)
        self._port = port
        self._inside = threading.local()
        self._trusted = _trusted()
        self._checks: dict[str, Callable[[str, tuple[Any, ...]], str | None]] = {
            **dict.fromkeys(PROCESSES, self._always),
            **dict.fromkeys(PICKLES, self._always),
            **dict.fromkeys(PLACES, self._place),
            "ctypes.dlopen": self._library,
            "exec": self._exec,
            "import": self._import,
            "open": self._open,
            "socket.connect": self._connect,
            "socket.getaddrinfo": self._name,
            "socket.gethostbyname": self._name,
            "socket.sendto": self._connect,
        }

    def install(self) -> None:
        """Begin. A hook stays until the process ends."""
        sys.addaudithook(self._hook)

    def strange_modules(self) -> list[str]:
        """Imported modules whose files are neither Python's nor ours."""
        files = [str(getattr(module, "__file__", None) or "") for module in sys.modules.values()]
        # Some modules have names of no place.
        return [f for f in files if Path(f).is_absolute() and not self._is_trusted(f)]

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        check = self._checks.get(event)
        if check is None or getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            self.events += 1
            found = check(event, arguments)
        except Exception as error:  # noqa: BLE001 - a hook that raises changes what is watched
            found = f"{event}: the watch itself: {error!r}"
        finally:
            self._inside.now = False
        if found is not None and found not in self.violations:
            self.violations.append(found)

    def _always(self, event: str, arguments: tuple[Any, ...]) -> str:
        return f"{event} {arguments!r}"[:200]

    def _open(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        path, _, flags = arguments
        if isinstance(path, int) or not flags & WRITES:
            return None
        return self._changed(event, path, -1)

    def _place(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        folders = FOLDERS.get(event, (None,) * 2)
        for at, folder in zip(PLACES[event], folders, strict=False):
            descriptor = -1 if folder is None else arguments[folder]
            found = self._changed(event, arguments[at], descriptor)
            if found is not None:
                return found
        return None

    def _changed(self, event: str, path: str | bytes | os.PathLike[str], folder: int) -> str | None:
        if isinstance(path, int):
            return None  # what is open was looked at when it was opened
        text = os.fsdecode(path)
        if folder >= 0:
            text = str(Path(f"/proc/self/fd/{folder}") / text)
        # To open a link is to open what it leads to; everything else changes the link.
        path = Path(text)
        place = str(path.resolve() if event == "open" else path.parent.resolve() / path.name)
        if place == os.devnull or (place + os.sep).startswith(self._writable):
            return None
        return f"{event} outside: {place}"

    def _exec(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        code: CodeType = arguments[0]
        if self._is_trusted(code.co_filename):
            return None
        who = _callers()
        # Making classes, and the first run of a module, which is looked at when it is imported.
        if any(name.endswith(MAKERS) or name.startswith("<frozen importlib") for name in who):
            return None
        return f"{event} of {code.co_filename} by {who[0]}"

    def _import(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        name, file = arguments[:2]
        return None if file is None or self._is_trusted(file) else f"{event} of {name}: {file}"

    def _library(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        name = arguments[0]
        if name is None or os.sep not in os.fsdecode(name) or self._is_trusted(os.fsdecode(name)):
            return None
        return f"{event} {name}"

    def _connect(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        address = arguments[1]
        if isinstance(address, tuple) and address[:2] == ("127.0.0.1", self._port):
            return None
        return f"{event} {address!r}"

    def _name(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        host = arguments[0]
        return None if host in ("127.0.0.1", "localhost") else f"{event} {host!r}"

    def _is_trusted(self, file: str) -> bool:
        return file.startswith(("<frozen ", *self._trusted))


def _callers() -> list[str]:
    """The files of the functions that are running, the innermost first, without this one."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the stack is what is asked for
    found = []
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            found.append(frame.f_code.co_filename)
        frame = frame.f_back
    return found


def _trusted() -> tuple[str, ...]:
    """Where Python's modules, the installed packages and this checkout are."""
    root = Path(__file__).resolve().parent.parent.parent
    ours = (root / "rlsparse_store", root / "tools", root / "specs", root / "tests" / "support")
    folders = {*map(str, ours), *sysconfig.get_paths().values(), *sys.path, sys.prefix}
    folders |= {sys.base_prefix}
    found = {Path(folder) for folder in folders if folder}
    return tuple(f"{path}{os.sep}" for path in found | {path.resolve() for path in found})
