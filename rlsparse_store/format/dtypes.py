"""The dtypes of safetensors and how their bits are coded (``specs/format.md`` section 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = ["DTYPES", "Dtype", "OrderMap", "WordCoding"]


class OrderMap(IntEnum):
    """How the words of a dtype are ordered, so that neighbouring values are one step apart."""

    UNSIGNED = 0
    TWOS_COMPLEMENT = 1
    SIGN_MAGNITUDE = 2


@dataclass(frozen=True, slots=True)
class WordCoding:
    """How a tensor's bytes are cut into words and how those words are ordered.

    Attributes:
        width: Bits of a word: 4, 8, 16, 32 or 64.
        order: The order map.
    """

    width: int
    order: OrderMap

    @property
    def key_bits(self) -> int:
        """Bits of a word's key: its magnitude, or the word itself where it has no sign."""
        return self.width if self.order is OrderMap.UNSIGNED else self.width - 1

    def num_words(self, nbytes: int) -> int:
        """Words in ``nbytes`` bytes, which must hold a whole number of them."""
        return nbytes * 8 // self.width

    def nbytes(self, words: int) -> int:
        """Bytes that ``words`` words take; for 4-bit words their number must be even."""
        return words * self.width // 8


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype of safetensors.

    Attributes:
        code: The name safetensors uses, such as ``BF16``.
        number: Its number in the format, which is also safetensors' sorting order.
        bits: Bits of one element as stored.
        coding: Its default word coding.
        mantissa_bits: Explicit mantissa bits of a word of a floating-point dtype, else ``None``.
    """

    code: str
    number: int
    bits: int
    coding: WordCoding
    mantissa_bits: int | None = None

    def nbytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of a tensor of this shape, or ``None`` if they are no whole number."""
        bits = math.prod(shape) * self.bits
        return None if bits % 8 else bits // 8


_U, _I, _F = OrderMap.UNSIGNED, OrderMap.TWOS_COMPLEMENT, OrderMap.SIGN_MAGNITUDE

# code, bits per element, word width, order map, mantissa bits
_TABLE: Final = (
    ("BOOL", 8, 8, _U, None),
    ("F4", 4, 4, _F, 1),
    ("F6_E2M3", 6, 8, _U, None),
    ("F6_E3M2", 6, 8, _U, None),
    ("U8", 8, 8, _U, None),
    ("I8", 8, 8, _I, None),
    ("F8_E5M2", 8, 8, _F, 2),
    ("F8_E4M3", 8, 8, _F, 3),
    ("F8_E8M0", 8, 8, _U, None),
    ("F8_E4M3FNUZ", 8, 8, _F, 3),
    ("F8_E5M2FNUZ", 8, 8, _F, 2),
    ("I16", 16, 16, _I, None),
    ("U16", 16, 16, _U, None),
    ("F16", 16, 16, _F, 10),
    ("BF16", 16, 16, _F, 7),
    ("I32", 32, 32, _I, None),
    ("U32", 32, 32, _U, None),
    ("F32", 32, 32, _F, 23),
    ("C64", 64, 32, _F, 23),
    ("F64", 64, 64, _F, 52),
    ("I64", 64, 64, _I, None),
    ("U64", 64, 64, _U, None),
)

DTYPES: Final[dict[str, Dtype]] = {
    code: Dtype(code, number, bits, WordCoding(width, order), mantissa)
    for number, (code, bits, width, order, mantissa) in enumerate(_TABLE)
}
"""Every dtype by its safetensors code."""
