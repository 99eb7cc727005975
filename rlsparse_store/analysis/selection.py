"""Selection of words by the kernels, many times faster than NumPy's boolean indexing."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import ChangedWords

__all__ = ["flags", "positions", "select"]


def flags(changed: ChangedWords, words: int) -> NDArray[np.bool_]:
    """Return for each of ``words`` words whether it changed."""
    return np.unpackbits(changed.mask, count=words, bitorder="little").view(np.bool_)


def select(words: Words, mask: NDArray[np.bool_]) -> Words:
    """Return the words where the mask is set, as ``words[mask]`` does.

    Example:
        >>> select(np.array([5, 6], np.uint8), np.array([False, True]))
        array([6], dtype=uint8)
    """
    # They differ from these exactly where the mask is set.
    return get_backend().record(words, words ^ mask)[1]


def positions(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices where the mask is set, as ``np.flatnonzero`` does.

    Args:
        mask: Flags of a block.

    Example:
        >>> positions(np.array([False, True]))
        array([1])
    """
    low = select(_low_halves(-(-mask.size // _HALF))[: mask.size], mask)
    counts = [np.count_nonzero(mask[i : i + _HALF]) for i in range(0, mask.size, _HALF)]
    high = np.repeat(np.arange(len(counts), dtype=np.int64) * _HALF, counts)
    return high + low


_HALF: Final = 1 << 16


@cache
def _low_halves(blocks: int) -> NDArray[np.uint16]:
    """Return the low 16 bits of the indices of some blocks of 2**16."""
    return np.tile(np.arange(_HALF, dtype=np.uint16), blocks)
