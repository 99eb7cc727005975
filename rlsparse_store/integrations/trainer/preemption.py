"""Work that must be done before SIGTERM ends the process: schedulers preempt jobs by it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["before_sigterm"]


@contextmanager
def before_sigterm(finish: Callable[[], None]) -> Iterator[None]:
    """Call ``finish`` when SIGTERM arrives within the block, then do what it did before.

    A second SIGTERM does not wait. In a thread other than the main one, which cannot handle
    signals, the block runs without this.

    Args:
        finish: Runs in the main thread, between any two of its instructions.
    """
    before = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()
    # None is a handler that was not installed from Python and cannot be called from it.
    if not is_main or before is None:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before)
        finish()
        if callable(before):
            before(number, frame)
        elif before is signal.SIG_DFL:
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        # A callback of Trainer may have installed another one, which goes on.
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, before)
