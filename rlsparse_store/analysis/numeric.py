"""Numeric values of words, and their rounding to other dtypes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.format.words import Widening, cast_to_bf16, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = ["CASTS", "as_floats", "cast_words", "count_cast_changes", "is_numeric"]

_SMALL_FLOATS: Final = {
    # Exponent bits, mantissa bits, bias, and whether it has infinities (None: nor NaNs).
    "F8_E5M2": (5, 2, 15, True),
    "F8_E4M3": (4, 3, 7, False),
    "F8_E4M3FNUZ": (4, 3, 8, False),
    "F8_E5M2FNUZ": (5, 2, 16, False),
    "F4": (2, 1, 1, None),
}
_INTEGERS: Final = {"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"}
_WIDE: Final = {"F16": np.float16, "F32": np.float32, "F64": np.float64}

CASTS: Final = ("F32", "F16", "BF16", "F8_E4M3")
"""Dtypes for which changes that survive a cast are counted."""


def is_numeric(dtype: Dtype) -> bool:
    """Whether the words of a dtype have numeric values."""
    return dtype.code in _INTEGERS or dtype.code in _SMALL_FLOATS or dtype.code in {"BF16", *_WIDE}


def as_floats(words: Words, dtype: Dtype) -> NDArray[np.floating[Any]]:
    """Values of words: float32 for floats of up to 32 bits, else float64.

    64-bit integers are rounded.

    Args:
        words: Words of the dtype's default coding.
        dtype: A numeric dtype.
    """
    code = dtype.code
    if code == "BF16":
        bits: NDArray[np.uint32] = widen(words, Widening.BF16_TO_F32)
        return bits.view(np.float32)
    if code in _WIDE:
        values = words.view(_WIDE[code])
        return values.astype(np.float32) if code == "F16" else values
    if code in _SMALL_FLOATS:
        return _small_float_table(code)[words]
    if code.startswith("I"):
        words = words.view(words.dtype.str.replace("u", "i"))
    return words.astype(np.float64)


@cache
def _small_float_table(code: str) -> NDArray[Any]:
    """The value of every word of a floating-point dtype of at most eight bits."""
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


def count_cast_changes(before: Words, after: Words, dtype: Dtype, code: str) -> int:
    """Number of changed words that still differ after casting both sides.

    Args:
        before: Words of the base.
        after: Words of the tuned checkpoint.
        dtype: Their numeric dtype.
        code: One of :data:`CASTS`.
    """
    if dtype.code == code or (code == "F32" and dtype.code in {"BF16", "F16"}):
        # Widening is injective, for NaNs too.
        return int(np.count_nonzero(before != after))
    if dtype.coding.width <= 16:
        table = _cast_table(dtype, code)
        return int(np.count_nonzero(table[before] != table[after]))
    old, new = as_floats(before, dtype), as_floats(after, dtype)
    return int(np.count_nonzero(cast_words(old, code) != cast_words(new, code)))


@cache
def _cast_table(dtype: Dtype, code: str) -> NDArray[Any]:
    """The cast of every word of a dtype of at most 16 bits."""
    unsigned: Any = np.uint16 if dtype.coding.width == 16 else np.uint8
    words = np.arange(1 << dtype.coding.width).astype(unsigned)
    return cast_words(as_floats(words, dtype), code)


def cast_words(values: NDArray[np.floating[Any]], code: str) -> NDArray[np.unsignedinteger[Any]]:
    """Bit patterns of values after rounding to a dtype, to nearest, ties to even.

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
    return _cast_to_f8_e4m3(wide)


def _cast_to_f8_e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest F8_E4M3 words; values beyond the largest saturate."""
    table = _small_float_table("F8_E4M3")[:127].astype(np.float64)
    middles = (table[:-1] + table[1:]) / 2
    magnitude = np.abs(values.astype(np.float64))
    word = np.searchsorted(middles, magnitude, side="left")
    # searchsorted puts a tie at the lower word; it belongs to the even one.
    tied = (word < middles.size) & (middles[np.minimum(word, middles.size - 1)] == magnitude)
    word = word + (tied & (word % 2 == 1))
    word = np.where(np.isnan(values), 127, word)
    return (word | np.where(np.signbit(values), 128, 0)).astype(np.uint8)
