"""How large the content of a delta chunk can be, from numbers that are known before it is read.

A frame may announce any size, and a few bytes of it can stand for gigabytes: what is announced is
held against this bound before anything is decompressed (``specs/format.md`` section 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["largest_content"]


def largest_content(changed: Sequence[int], words: int, width: int, rows: int) -> int:
    """The most bytes that the content of a delta chunk can have, whatever its base words are.

    Args:
        changed: Changed words of each context.
        words: Words of the chunk.
        width: Bits of a word.
        rows: Rows that it has flags for; 0 without row flags.

    Example:
        >>> largest_content([2], 32, 32, 0)
        20
    """
    # The mask of n words takes at most n / 5 + 1 bytes. With a bit each it takes n / 8, rounded up.
    # With gaps 2^r <= n / 6k, so that k and the low bits take at most n (1 + r / 8) / (6 * 2^r) and
    # the escapes, of at least 255 * 2^r ranks each, 4 n / (255 * 2^r): 0.183 n for r = 0, and less
    # for any other.
    masks = words // 5 + len(changed)
    # Sign, class, a byte for q, and the lowest q <= W - 2 bits of a far step. Each of these parts
    # but the q's may end with part of a byte.
    values = min(sum(changed), words) * (width + 9) // 8 + 3
    return -(-rows // 8) + masks + values
