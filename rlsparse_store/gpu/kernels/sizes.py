"""Sizes of the kernels' work items, and the columns of their tables."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CHUNK_COLUMNS",
    "GROUP",
    "GROUPS",
    "PART",
    "PARTS",
    "RANKS",
    "SEGMENT_COLUMNS",
    "SLOTS",
    "STEPS",
    "STREAM_COLUMNS",
    "TILE",
]

GROUP: Final = 32
"""Words of a group, whose bits are an int32."""

GROUPS: Final = 512
"""Groups of a tile. Its word counts fit in 16 bits, so that an int32 holds two of them."""

TILE: Final = GROUP * GROUPS
"""Words of a tile."""

PARTS: Final = 4
"""Parts of a tile. Kernels that read every word run one program per part."""

PART: Final = TILE // PARTS
"""Words of a part."""

SLOTS: Final = 16
"""Maximum number of contexts of a chunk; the row length of tables of counts."""

RANKS: Final = 1024
"""Changed words of a mask that one program handles."""

STEPS: Final = 4096
"""Steps of a chunk that one program handles."""

CHUNK_COLUMNS: Final = 8
"""Per chunk: address of the base words; address of the other words; number of words; first tile;
words of a row; position of the first word in its row; index of the first row flag, or -1 without
row flags; first group in the bits of changed words."""

SEGMENT_COLUMNS: Final = 8
"""Per mask: index of the first changed word; number of changed words; low bits per gap, or -1 for a
dense mask; first bit of the low bits or of the dense mask; first byte of the high parts; first byte
of the escaped ones. For decoding also: words of the context; first bit of the decoded mask."""

STREAM_COLUMNS: Final = 6
"""Per chunk: index of the first step; number of steps; first byte of the signs, of the classes and
of the exponents; first bit of the low bits (encoding) or end of the content (decoding)."""
