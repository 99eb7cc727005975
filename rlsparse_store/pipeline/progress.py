"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the total bytes."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""
