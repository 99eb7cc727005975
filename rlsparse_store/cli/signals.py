"""Signal handlers: exit at once while modules load, exit in order afterwards."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers know it: nothing is imported here that takes long
if TYPE_CHECKING:
    from collections.abc import Callable
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import NoReturn

__all__ = ["end_at_once", "end_at_second", "end_in_order"]

SIGNALLED = 128
"""Plus the number of the signal: what shells report."""

INTERRUPTED = b"rlsparse: interrupted\n"

CLEAR_LINE = b"\r\x1b[K"
"""On a terminal, removes the progress bar and the ^C of the shell."""

AGAIN_SECONDS = 0.01
"""Delay before a lost exception is raised again, so that its frame has returned."""


class _Ended(SystemExit):
    """Raised when a signal ends the process."""


def end_at_once() -> None:
    """Make Ctrl-C exit at once: there is nothing to clean up yet.

    An exception would not do: some modules catch it while they are imported, and where Python
    cannot raise it, it prints it and continues.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    if _is_heard(signal.SIGINT):
        signal.signal(signal.SIGINT, _leave)


def end_in_order() -> None:
    """Make signals exit through an exception, so that temporary folders are removed.

    Python cannot raise it in the callback of a weak reference or in `__del__`. There, the exception
    would be lost and the command would continue.
    """
    sys.unraisablehook = _raise_again
    _handle(_end)


def end_at_second() -> None:
    """As :func:`end_in_order`, and make a second signal exit at once, whatever is cleaned up."""
    end_in_order()
    _handle(_end_or_leave)


def _handle(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    """Let a handler answer all signals that the process hears."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if _is_heard(number):
            signal.signal(number, handler)


def _is_heard(number: int) -> bool:
    """Whether the process was started without ignoring the signal, as `nohup` does."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    try:
        if number == signal.SIGINT:
            os.write(2, CLEAR_LINE * os.isatty(2) + INTERRUPTED)
    finally:
        os._exit(SIGNALLED + number)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    if number == signal.SIGINT:
        os.write(2, CLEAR_LINE * os.isatty(2) + INTERRUPTED)
    raise _Ended(SIGNALLED + number)


def _end_or_leave(number: int, frame: FrameType | None) -> NoReturn:
    _handle(_leave)
    _end(number, frame)


def _raise_again(lost: UnraisableHookArgs) -> None:
    """Raise a lost exit again after a moment; print any other lost exception.

    Finalizers of libraries fail where the disk does: these errors take one line.
    """
    ended = lost.exc_value
    if isinstance(ended, OSError):
        os.write(2, f"rlsparse: warning: {ended}\n".encode(errors="backslashreplace"))
        return
    if not isinstance(ended, _Ended):
        sys.__unraisablehook__(lost)
        return

    def again(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise ended

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
