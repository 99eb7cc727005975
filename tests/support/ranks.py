"""Ranks that speak over gloo: processes forked when all is imported, which takes longest."""

from __future__ import annotations

import os
import sys

__all__ = ["forked"]


def forked(ranks: int, gone: int | None = None) -> int:
    """Fork so many ranks, and return in each with its number.

    This process ends when all of them have, and fails if one did other than the one that is gone.
    """
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            return rank
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(code for rank, code in enumerate(codes) if rank != gone))
