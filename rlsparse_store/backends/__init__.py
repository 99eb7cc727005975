"""The loops over words, in several implementations that give the same bits.

:func:`get_backend` is the one place that chooses between them.
"""

from __future__ import annotations

from rlsparse_store.backends.choice import get_backend
from rlsparse_store.backends.interface import (
    Backend,
    Changes,
    ChunkWords,
    CodedWords,
    CpuBackend,
    Histogram,
    Rows,
    Streams,
    Words,
    rows_touched,
)

__all__ = [
    "Backend",
    "Changes",
    "ChunkWords",
    "CodedWords",
    "CpuBackend",
    "Histogram",
    "Rows",
    "Streams",
    "Words",
    "get_backend",
    "rows_touched",
]
