"""Ranks of a process group: processes forked after all imports, which take most of the time."""

from __future__ import annotations

import os
import sys

__all__ = ["forked"]


def forked(ranks: int, gone: int | None = None) -> int:
    """Fork the ranks and return in each with its number.

    This process exits when all ranks have. It fails if any rank except ``gone`` failed.
    """
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            return rank
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(code for rank, code in enumerate(codes) if rank != gone))
