"""How signals end the command: at once while it loads, in order once it works."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers know it: nothing is imported here that takes long
if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import NoReturn

__all__ = ["end_at_once", "end_in_order"]

SIGNALLED = 128
"""Plus the number of the signal: what shells report."""

INTERRUPTED = b"rlsparse: interrupted\n"

AGAIN_SECONDS = 0.01
"""After an exception was lost, it is raised once more: long enough for the loser to be left."""


class _Ended(SystemExit):
    """A signal ends the process, by its ordinary way out."""


def end_at_once() -> None:
    """Let Ctrl-C end the process where it is, for nothing is there that has to be cleaned up.

    An exception would not do: modules that are being imported catch some, and where Python has
    nowhere to raise one, it prints it and goes on.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    if _is_heard(signal.SIGINT):
        signal.signal(signal.SIGINT, _leave)


def end_in_order() -> None:
    """Let signals end the process through the ordinary way out, which removes temporary folders.

    It is an exception, and where Python has nowhere to raise one, as in the callback of a weak
    reference or in `__del__`, it would be lost, and the command would go on.
    """
    sys.unraisablehook = _raise_again
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if _is_heard(number):
            signal.signal(number, _end)


def _is_heard(number: int) -> bool:
    """Whether the process was not started to ignore the signal, as `nohup` does it."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    try:
        os.write(2, INTERRUPTED)
    finally:
        os._exit(SIGNALLED + number)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    if number == signal.SIGINT:
        os.write(2, INTERRUPTED)
    raise _Ended(SIGNALLED + number)


def _raise_again(lost: UnraisableHookArgs) -> None:
    """Raise the end of the process a little later, where it may not be lost; print the rest."""
    ended = lost.exc_value
    if not isinstance(ended, _Ended):
        sys.__unraisablehook__(lost)
        return

    def again(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise ended

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
