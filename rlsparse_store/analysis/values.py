"""The numbers that words stand for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.format.words import Widening, cast_to_bf16, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = ["CASTS", "cast_differs", "cast_words", "is_numeric", "values_of"]

_SMALL_FLOATS: Final = {
    # bits of exponent and mantissa, bias, and whether it has infinities
    "F8_E5M2": (5, 2, 15, True),
    "F8_E4M3": (4, 3, 7, False),
    "F8_E4M3FNUZ": (4, 3, 8, False),
    "F8_E5M2FNUZ": (5, 2, 16, False),
    "F4": (2, 1, 1, None),
}
_INTEGERS: Final = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}
_WIDE: Final = {"F16": np.float16, "F32": np.float32, "F64": np.float64}

CASTS: Final = ("F32", "F16", "BF16", "F8_E4M3")
"""Dtypes that values are cast to, to see what would still differ."""


def is_numeric(dtype: Dtype) -> bool:
    """Whether a dtype's words are numbers that can be subtracted."""
    return dtype.code in _INTEGERS or dtype.code in _SMALL_FLOATS or dtype.code in {"BF16", *_WIDE}


def values_of(words: Words, dtype: Dtype) -> NDArray[np.floating[Any]]:
    """The numbers, as float32 where that holds them exactly, else as float64.

    64-bit integers are rounded.

    Args:
        words: Words of the dtype's default coding.
        dtype: The dtype, which is numeric.
    """
    code = dtype.code
    if code == "BF16":
        bits: NDArray[np.uint32] = widen(words, Widening.BF16_TO_F32)
        return bits.view(np.float32)
    if code in _WIDE:
        found = words.view(_WIDE[code])
        return found.astype(np.float32) if code == "F16" else found
    if code in _SMALL_FLOATS:
        return _small_floats(code)[words]
    if code.startswith("I"):
        words = words.view(words.dtype.str.replace("u", "i"))
    return words.astype(np.float64)


@cache
def _small_floats(code: str) -> NDArray[Any]:
    """Every value of a floating-point dtype of at most eight bits."""
    exponent_bits, mantissa_bits, bias, has_infinities = _SMALL_FLOATS[code]
    width = 1 + exponent_bits + mantissa_bits
    words = np.arange(1 << width)
    sign = np.where(words >> (width - 1), -1.0, 1.0)
    exponent = words >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = words & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    scale = np.exp2(np.maximum(exponent, 1) - bias)
    values = sign * np.where(exponent == 0, fraction, 1 + fraction) * scale
    top = exponent == (1 << exponent_bits) - 1
    if code.endswith("FNUZ"):
        values[words == 1 << (width - 1)] = np.nan
    elif has_infinities:
        values[top & (mantissa == 0)] = np.inf * sign[top & (mantissa == 0)]
        values[top & (mantissa != 0)] = np.nan
    elif has_infinities is False:
        values[top & (mantissa == (1 << mantissa_bits) - 1)] = np.nan
    table: NDArray[np.float32] = values.astype(np.float32)
    return table


def cast_differs(before: Words, after: Words, dtype: Dtype, code: str) -> int:
    """How many of these words would still differ if both sides were cast.

    Args:
        before: Words of the base.
        after: Words of the tuned side.
        dtype: Their dtype, which is numeric.
        code: One of :data:`CASTS`.
    """
    if dtype.code == code or (code == "F32" and dtype.code in {"BF16", "F16"}):
        # Widening keeps every two words apart, NaNs too.
        return int(np.count_nonzero(before != after))
    if dtype.coding.width <= 16:
        table = _cast_table(dtype, code)
        return int(np.count_nonzero(table[before] != table[after]))
    old, new = values_of(before, dtype), values_of(after, dtype)
    return int(np.count_nonzero(cast_words(old, code) != cast_words(new, code)))


@cache
def _cast_table(dtype: Dtype, code: str) -> NDArray[Any]:
    """What every word of a narrow dtype is cast to."""
    kind: Any = np.uint16 if dtype.coding.width == 16 else np.uint8
    words = np.arange(1 << dtype.coding.width).astype(kind)
    return cast_words(values_of(words, dtype), code)


def cast_words(values: NDArray[np.floating[Any]], code: str) -> NDArray[np.unsignedinteger[Any]]:
    """Values rounded to a dtype, to the nearest, ties to even, as bits to be compared.

    Args:
        values: The values.
        code: One of :data:`CASTS`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float32)
    if code == "F32":
        return wide.view(np.uint32)
    if code == "BF16":
        return cast_to_bf16(wide.view(np.uint32))
    if code == "F16":
        with np.errstate(over="ignore", invalid="ignore"):
            return wide.astype(np.float16).view(np.uint16)
    return _nearest(wide)


def _nearest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The words of F8_E4M3 nearest to values; beyond the largest, the largest."""
    table = _small_floats("F8_E4M3")[:127].astype(np.float64)
    middles = (table[:-1] + table[1:]) / 2
    magnitude = np.abs(values.astype(np.float64))
    word = np.searchsorted(middles, magnitude, side="left")
    # A tie goes to the even word: searchsorted leaves it at the lower one.
    tied = (word < middles.size) & (middles[np.minimum(word, middles.size - 1)] == magnitude)
    word = word + (tied & (word % 2 == 1))
    word = np.where(np.isnan(values), 127, word)
    return (word | np.where(np.signbit(values), 128, 0)).astype(np.uint8)
