"""What an ideal coder would pay, in integers.

The encoder chooses contexts and block boundaries by these costs. They are computed in fixed
point, so that every machine makes the same choice: logarithms of different math libraries
differ in their last bits, and a near-tie decided differently would change the file.
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
    "EMPTY_COST",
    "LOG2",
    "MOST_CONTEXTS",
    "ONE_BIT",
    "SAMPLED_BYTES",
    "SYMBOL_COST",
    "TABLE_COST",
    "mask_cost",
    "n_log_n",
]

_FRACTION: Final = 16
ONE_BIT: Final = 1 << _FRACTION
"""One bit in units of cost."""

CONTEXT_COST: Final = 160 * ONE_BIT
"""What a context with changes costs beyond its entropy: table entries, partial bytes, a block."""

EMPTY_COST: Final = 16 * ONE_BIT
"""What a context without changes costs."""

MOST_CONTEXTS: Final = 12
"""More than the format's typical eight buy nothing measurable; it allows 16."""

BLOCK_COST: Final = 24 * ONE_BIT
"""What a zstd block costs beyond its bytes."""

TABLE_COST: Final = 40 * ONE_BIT
"""What the Huffman table of a block costs, and for each of its symbols ``SYMBOL_COST``."""

SYMBOL_COST: Final = 5 * ONE_BIT

SAMPLED_BYTES: Final = 4096
"""Bytes of a stream, evenly spread, that its histogram is taken from."""

_STEPS: Final = 11
# Rounded to 16 fractional bits: no entry lies near enough to a rounding boundary for the last
# bit of the platform's log2 to matter, which a test checks.
LOG2: Final = np.array(
    [round(math.log2(1 + i / (1 << _STEPS)) * ONE_BIT) for i in range((1 << _STEPS) + 1)],
    np.int64,
)


def n_log_n(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cost n · log2(n) in fixed point, 0 for 0; exact to about 1e-5 of n bits. n is below 2^40."""
    if n.size and n.max() < _SMALL.size:
        return _SMALL[n]
    return _n_log_n(n)


def mask_cost(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cost of telling which ``k`` of ``n`` words changed."""
    return n_log_n(n) - n_log_n(k) - n_log_n(n - k)


def _n_log_n(n: NDArray[np.int64]) -> NDArray[np.int64]:
    # frexp is exact on integers below 2^53, so the exponent is the bit length everywhere.
    exponent = np.maximum(np.frexp(n.astype(np.float64))[1].astype(np.int64) - 1, 0)
    normal = (n << (40 - exponent)) & ((1 << 40) - 1)
    place = normal >> (40 - _STEPS)
    rest = (normal >> (40 - _STEPS - 12)) & 0xFFF
    low = LOG2[place]
    fraction = low + ((LOG2[np.minimum(place + 1, 1 << _STEPS)] - low) * rest >> 12)
    cost: NDArray[np.int64] = np.where(n > 0, n * ((exponent << _FRACTION) + fraction), 0)
    return cost


_SMALL: Final = _n_log_n(np.arange(1 << 12))
