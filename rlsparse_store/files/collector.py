"""Pausing the garbage collector while many records are made."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["collector_paused"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking the records as they are made, or once all are.

    There may be hundreds of thousands, none of them in a cycle; it is a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # All objects go to the oldest generation, which is rarely walked.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
