"""How many threads to work on."""

from __future__ import annotations

import os

__all__ = ["resolve_threads"]


def resolve_threads(threads: int | None) -> int:
    """The number asked for, or the processors this process may use.

    Raises:
        ValueError: It is less than one.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if threads < 1:
        msg = f"threads is {threads}; at least 1 is needed"
        raise ValueError(msg)
    return threads
