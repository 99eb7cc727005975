"""Cost model of the encoder: ideal code lengths in fixed point.

The encoder chooses contexts and block boundaries by these costs. Fixed point makes every machine
choose alike: math libraries differ in the last bits of their logarithms, and a near-tie resolved
differently would change the file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLOCK_COST",
    "CONTEXT_COST",
    "CONTEXT_LIMIT",
    "EMPTY_COST",
    "LOG2",
    "ONE_BIT",
    "ROW_FLAG_MARGIN",
    "SAMPLED_BYTES",
    "SYMBOL_COST",
    "TABLE_COST",
    "mask_cost",
    "n_log_n",
]

_FRACTION: Final = 16
ONE_BIT: Final = 1 << _FRACTION
"""Cost of one bit."""

CONTEXT_COST: Final = 160 * ONE_BIT
"""Overhead of a context with changes: table entries, partial bytes, a block."""

EMPTY_COST: Final = 16 * ONE_BIT
"""Overhead of a context without changes."""

CONTEXT_LIMIT: Final = 12
"""Contexts per chunk that the encoder uses at most. The format allows 16, but more than eight bring
no measurable gain."""

BLOCK_COST: Final = 24 * ONE_BIT
"""Overhead of a zstd block."""

TABLE_COST: Final = 40 * ONE_BIT
"""Cost of a block's Huffman table, without its symbols."""

SYMBOL_COST: Final = 5 * ONE_BIT
"""Cost of each symbol in a Huffman table."""

ROW_FLAG_MARGIN: Final = 128 * ONE_BIT
"""Minimum net saving of row flags; it covers the overhead of one more stream."""

SAMPLED_BYTES: Final = 4096
"""Bytes that a stream's histogram samples, evenly spaced."""

_STEPS: Final = 11
# Rounded to 16 fractional bits. A test checks that no entry is so near a rounding boundary that the
# last bit of the platform's log2 matters.
LOG2: Final = np.array(
    [round(math.log2(1 + i / (1 << _STEPS)) * ONE_BIT) for i in range((1 << _STEPS) + 1)],
    np.int64,
)


def n_log_n(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return n · log2(n) in fixed point; 0 for n = 0.

    ``n`` is below 2^40. The error is about n · 1e-5 bits.
    """
    if n.size and n.max() < _SMALL.size:
        return _SMALL[n]
    return _n_log_n(n)


def mask_cost(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cost of a mask with ``k`` of ``n`` bits set."""
    return n_log_n(n) - n_log_n(k) - n_log_n(n - k)


def _n_log_n(n: NDArray[np.int64]) -> NDArray[np.int64]:
    # frexp is exact on integers below 2^53, so the exponent is the bit length everywhere.
    exponent = np.maximum(np.frexp(n.astype(np.float64))[1].astype(np.int64) - 1, 0)
    normal = (n << (40 - exponent)) & ((1 << 40) - 1)
    index = normal >> (40 - _STEPS)
    remainder = (normal >> (40 - _STEPS - 12)) & 0xFFF
    low = LOG2[index]
    fraction = low + ((LOG2[np.minimum(index + 1, 1 << _STEPS)] - low) * remainder >> 12)
    cost: NDArray[np.int64] = np.where(n > 0, n * ((exponent << _FRACTION) + fraction), 0)
    return cost


_SMALL: Final = _n_log_n(np.arange(1 << 12))
