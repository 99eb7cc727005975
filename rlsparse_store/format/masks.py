"""Which words of a context changed (``specs/format.md`` section 4.2, masks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import StreamError
from rlsparse_store.format.bits import StreamReader, pack_fields, pack_flags

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DENSE", "ESCAPE", "decode_mask", "encode_mask", "low_width"]

DENSE: Final = 6
"""A context with at least one change in this many words has a bit per word."""

ESCAPE: Final = 255
"""The high part of a gap that does not fit its byte."""


def low_width(n: int, k: int) -> int:
    """Low bits of a gap that are packed raw."""
    return (n // (DENSE * k)).bit_length() - 1


def encode_mask(ranks: NDArray[np.int64], n: int) -> bytes:
    """Code the set of changed ranks of a context of ``n`` words.

    Args:
        ranks: Ascending ranks of the changed words.
        n: Words of the context.
    """
    k = ranks.size
    if k in (0, n):
        return b""
    if k * DENSE >= n:
        flags = np.zeros(n, np.bool_)
        flags[ranks] = True
        return pack_flags(flags)
    gaps = np.diff(ranks, prepend=-1) - 1
    width = low_width(n, k)
    high = gaps >> width
    escaped = (high[high >= ESCAPE] - ESCAPE).astype("<u4")
    high_bytes: bytes = np.minimum(high, ESCAPE).astype(np.uint8).tobytes()
    return pack_fields(gaps, width) + high_bytes + escaped.tobytes()


def decode_mask(streams: StreamReader, n: int, k: int) -> NDArray[np.int64]:
    """Read back the changed ranks of a context.

    Args:
        streams: Positioned at the mask.
        n: Words of the context.
        k: Changed words of the context, at most ``n``.

    Raises:
        StreamError: The stream does not hold ``k`` ranks below ``n``.
    """
    if k == 0:
        return np.zeros(0, np.int64)
    if k == n:
        return np.arange(n, dtype=np.int64)
    if k * DENSE >= n:
        ranks = np.flatnonzero(streams.take_bits(n))
        if ranks.size != k:
            msg = f"a mask marks {ranks.size} words, not {k}"
            raise StreamError(msg)
        return ranks.astype(np.int64, copy=False)
    return _decode_gaps(streams, n, k)


def _decode_gaps(streams: StreamReader, n: int, k: int) -> NDArray[np.int64]:
    width = low_width(n, k)
    low = streams.take_fields(k, width)
    high = streams.take(k).astype(np.int64)
    escapes = np.flatnonzero(high == ESCAPE)
    high[escapes] += streams.take(4 * escapes.size).view("<u4").astype(np.int64)
    # The sum of any gaps has less than 64 bits: high < 2^33, and k * 2^width <= n / 6 < 2^24.
    ranks = np.cumsum(((high << width) | low) + 1) - 1
    if ranks[-1] >= n:
        msg = "the gaps overrun their context"
        raise StreamError(msg)
    return ranks
