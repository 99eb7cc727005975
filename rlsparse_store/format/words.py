"""Bytes as words and back, exact widening, and the one lossy cast there is."""

from __future__ import annotations

import sys
from enum import IntEnum
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rlsparse_store.errors import RlsparseError

__all__ = [
    "UNSIGNED",
    "Widening",
    "Words",
    "as_words",
    "cast_to_bf16",
    "narrow",
    "to_bytes",
    "widen",
]

if sys.byteorder != "little":  # pragma: no cover
    msg = "rlsparse_store needs a little-endian machine: its files hold little-endian words"
    raise RlsparseError(msg)

UNSIGNED: Final[dict[int, type[np.unsignedinteger[Any]]]] = {
    8: np.uint8,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}
"""NumPy's unsigned words by their bits."""

Words = NDArray[np.unsignedinteger[Any]]
"""Words of one width in a one-dimensional array: uint8 (also for 4-bit words), 16, 32 or 64."""


class Widening(IntEnum):
    """How a source's words become the words of a float32 tensor, exactly."""

    NONE = 0
    BF16_TO_F32 = 1
    F16_TO_F32 = 2

    @property
    def source_code(self) -> str:
        """The dtype code of the source."""
        return {Widening.BF16_TO_F32: "BF16", Widening.F16_TO_F32: "F16"}[self]


def as_words(data: NDArray[np.uint8], width: int) -> Words:
    """View bytes as words; 4-bit words are unpacked to one per byte, low half first."""
    if width == 4:
        return np.stack([data & 0xF, data >> 4], axis=1).ravel()
    return data.view(UNSIGNED[width])


def to_bytes(words: Words, width: int) -> NDArray[np.uint8]:
    """Inverse of :func:`as_words`."""
    if width == 4:
        return (words[0::2] | (words[1::2] << 4)).astype(np.uint8)
    return words.view(np.uint8)


@cache
def _f16_to_f32() -> NDArray[np.uint32]:
    """Every float16 word widened. In integers: float conversion would quiet signalling NaNs."""
    half = np.arange(1 << 16, dtype=np.uint32)
    sign, exponent, mantissa = (half >> 15) << 31, (half >> 10) & 0x1F, half & 0x3FF
    normal = sign | ((exponent + 112) << 23) | (mantissa << 13)
    special = sign | np.uint32(0x7F800000) | (mantissa << 13)
    # A subnormal is mantissa * 2^-24, which float32 holds exactly.
    subnormal = sign | (mantissa.astype(np.float32) * np.float32(2.0**-24)).view(np.uint32)
    return np.where(exponent == 31, special, np.where(exponent == 0, subnormal, normal))


def widen(words: NDArray[np.uint16], widening: Widening) -> NDArray[np.uint32]:
    """Widen 16-bit words of the source's dtype to float32 words."""
    if widening is Widening.BF16_TO_F32:
        return words.astype(np.uint32) << np.uint32(16)
    return _f16_to_f32()[words]


def narrow(words: NDArray[np.uint32], widening: Widening) -> NDArray[np.uint16] | None:
    """The 16-bit words that widen to exactly these float32 words, or ``None``."""
    if widening is Widening.BF16_TO_F32:
        return None if (words & 0xFFFF).any() else (words >> 16).astype(np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        halves = words.view(np.float32).astype(np.float16).view(np.uint16)
    is_nan = (words & 0x7FFFFFFF) > 0x7F800000
    nan = ((words >> 16) & 0x8000) | 0x7C00 | ((words >> 13) & 0x3FF)
    halves = np.where(is_nan, nan.astype(np.uint16), halves)
    return halves if np.array_equal(_f16_to_f32()[halves], words) else None


def cast_to_bf16(words: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Round float32 words to the nearest bfloat16, ties to even; a NaN stays a NaN."""
    wide = words.astype(np.uint64)
    rounded = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    is_nan = (words & 0x7FFFFFFF) > 0x7F800000
    quiet = ((words >> 16) | 0x40).astype(np.uint16)
    return np.where(is_nan, quiet, rounded)
