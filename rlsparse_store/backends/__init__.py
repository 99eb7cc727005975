"""The loops over words, in several implementations that give the same bits.

:func:`get_backend` is the one place that chooses between them.
"""

from __future__ import annotations

from rlsparse_store.backends.interface import Backend, Histogram, Rows, Streams, Words
from rlsparse_store.backends.numpy import NumpyBackend

__all__ = ["Backend", "Histogram", "Rows", "Streams", "Words", "get_backend"]


def get_backend() -> Backend:
    """The fastest backend that runs here. So far there is one, the definition."""
    return NumpyBackend()
