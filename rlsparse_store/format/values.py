"""By how many steps changed words moved (``specs/format.md`` section 4.2, values)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import StreamError
from rlsparse_store.format.bits import (
    StreamReader,
    pack_fields,
    pack_flags,
    pack_varying,
    unpack_varying,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["bit_length", "decode_far", "decode_steps", "encode_far", "encode_steps"]

FAR: Final = 3
"""The class of steps of more than this many."""


def bit_length(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Bits of each value, 0 for 0. Exact, unlike a logarithm, for all 64 bits."""
    high = (values >> np.uint64(32)).astype(np.float64)
    low = (values & np.uint64(0xFFFFFFFF)).astype(np.float64)
    upper = np.frexp(high)[1].astype(np.int64)
    return np.where(upper > 0, upper + 32, np.frexp(low)[1].astype(np.int64))


def encode_steps(steps: NDArray[np.int64], width: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Code non-zero steps as signs, classes, exponents and low bits.

    Args:
        steps: In the order of contexts, then positions.
        width: Bits of a word, which sets the size of an exponent.
    """
    # The most negative 64-bit step has no positive twin, but its bits are its magnitude.
    magnitude = np.abs(steps).view(np.uint64)
    classes = np.minimum(magnitude - np.uint64(1), np.uint64(FAR)).astype(np.int64)
    excess = magnitude[classes == FAR] - np.uint64(FAR)
    return pack_flags(steps < 0), pack_fields(classes, 2), *encode_far(excess, width)


def encode_far(excess: NDArray[np.uint64], width: int) -> tuple[bytes, bytes]:
    """Code what the steps of the last class have beyond it, as exponents and low bits.

    Args:
        excess: |step| - 3, at least 1.
        width: Bits of a word.
    """
    exponents = bit_length(excess) - 1
    return pack_fields(exponents, _exponent_bits(width)), pack_varying(excess, exponents)


def _exponent_bits(width: int) -> int:
    return 4 if width <= 16 else 8


def decode_steps(streams: StreamReader, count: int, width: int) -> NDArray[np.int64]:
    """Read back ``count`` steps.

    Raises:
        StreamError: The streams end early or hold a step that no word of this width can take.
    """
    negative = streams.take_bits(count) == 1
    magnitude = streams.take_fields(count, 2).astype(np.uint64) + np.uint64(1)
    far = np.flatnonzero(magnitude > FAR)
    magnitude[far] = decode_far(streams, far.size, width) + np.uint64(FAR)
    limit = np.where(negative, np.uint64(1 << (width - 1)), np.uint64((1 << (width - 1)) - 1))
    if (magnitude > limit).any():
        msg = f"a step does not fit words of {width} bits"
        raise StreamError(msg)
    signed = magnitude.view(np.int64)
    return np.where(negative, -signed, signed)


def decode_far(streams: StreamReader, count: int, width: int) -> NDArray[np.uint64]:
    """Read back what ``count`` steps of the last class have beyond it: |step| - 3.

    Raises:
        StreamError: The streams end early or hold an exponent that no word of this width can have.
    """
    exponents = streams.take_fields(count, _exponent_bits(width))
    # Above width - 2, a step could have more than 64 bits.
    if count and exponents.max() > width - 2:
        msg = f"a step has an exponent of {exponents.max()} in words of {width} bits"
        raise StreamError(msg)
    low = unpack_varying(streams.take_bits(int(exponents.sum())), exponents)
    return low | (np.uint64(1) << exponents.astype(np.uint64))
