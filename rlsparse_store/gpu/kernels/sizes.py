"""How the kernels cut their work, and the columns of the tables that they are given."""

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
"""Words of a group: those whose bits are an int32."""

GROUPS: Final = 512
"""Groups of a tile. Counts of its words fit 16 bits, so two go into one counter."""

TILE: Final = GROUP * GROUPS
"""Words of a tile."""

PARTS: Final = 4
"""Parts of a tile, each for a program of the kernels that look at every word."""

PART: Final = TILE // PARTS
"""Words of a part."""

SLOTS: Final = 16
"""Contexts of a chunk at most; rows of the tables of counts have as many places."""

RANKS: Final = 1024
"""Changed words of a context that a program codes as a mask."""

STEPS: Final = 4096
"""Changed words of a chunk whose steps a program codes."""

CHUNK_COLUMNS: Final = 8
"""Of each chunk: address of its base words; address of the others; words; its first tile; words of
a row; place of its first word in its row; place of its first row's flag, or -1 where rows do not
count; place of its first group among the bits of changed words."""

SEGMENT_COLUMNS: Final = 8
"""Of each mask: place of its first changed word; changed words; low bits of a gap, or -1 for one
bit a word; bit at which the low bits, or those of the words, begin; byte at which the high parts
begin; byte at which the escaped ones begin. In decoding, also the words of the context, and the
bit at which the mask as bits shall begin."""

STREAM_COLUMNS: Final = 6
"""Of each chunk's steps: place of the first one; how many; byte at which the signs begin; byte at
which the classes begin; byte at which the exponents begin; in encoding the bit at which the low
bits begin, in decoding the byte after the content's last."""
