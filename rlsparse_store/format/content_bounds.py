"""How large the content of a delta chunk can be, from numbers that are known before it is read.

A frame may announce any size, and a few bytes of it can stand for gigabytes: what is announced is
held against this bound before anything is decompressed (``specs/format.md`` section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.format.masks import DENSE, ESCAPE, low_width

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
    """
    return (
        _nbytes(rows)
        + _largest_masks(changed, words)
        + _largest_values(min(sum(changed), words), width)
    )


def _largest_masks(changed: Sequence[int], words: int) -> int:
    # A context of n words takes at most n / 5 + 1 bytes. With a bit each it takes n / 8, rounded
    # up. With gaps 2^r <= n / 6k, so that k and the low bits take at most n (1 + r / 8) / (6 * 2^r)
    # and the escapes, of at least 255 * 2^r ranks each, 4 (n - k) / (255 * 2^r): 0.18 n for r = 0,
    # and less for any other.
    return min(sum(_largest_mask(k, words) for k in changed), words // 5 + len(changed))


def _largest_mask(k: int, words: int) -> int:
    """The most bytes of the mask of a context with ``k`` changed words, of ``words`` or fewer."""
    if k == 0:
        return 0
    if DENSE * k >= words:
        return _nbytes(words)
    # Gaps, for a bit each, of at most 6 k words, would take no more than the k bytes. The low bits
    # are the more, the more words there are. An escape takes 255 * 2^r of the n ranks, and
    # 2^r > n / 12k.
    escapes = 2 * DENSE * k // ESCAPE
    return _nbytes(k * low_width(words, k)) + k + 4 * escapes


def _largest_values(changed: int, width: int) -> int:
    """The most bytes of signs, classes, q's and low bits: those of steps that are all far."""
    exponents = _nbytes(4 * changed) if width <= 16 else changed
    # |step| <= 2^(W-1), so that q <= W - 2.
    low_bits = _nbytes((width - 2) * changed)
    return _nbytes(changed) + _nbytes(2 * changed) + exponents + low_bits


def _nbytes(bits: int) -> int:
    return -(-bits // 8)
