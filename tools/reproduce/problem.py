"""What is learned: the sums of the demonstration, split in two, and three ways to write answers.

The base hesitates between two writers: one writes the digits of an answer forward, one backward.
Rewards are for the forward one, so what reinforcement learning brings out is in the base already.
A third way, digits shifted by one, is never in the base: what supervised training on foreign data
does is measured with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.demo.task import Sum, split_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HELD_OUT", "SPLITS", "halves", "held_out", "shifted", "training_sums"]

HELD_OUT: Final = 1000
SPLITS: Final = 2

_SEED: Final = 0


def training_sums() -> list[Sum]:
    """Everything that may be trained on."""
    return split_sums(HELD_OUT, _SEED)[0]


def held_out() -> list[Sum]:
    """What every model is scored on."""
    return split_sums(HELD_OUT, _SEED)[1]


def halves(sums: Sequence[Sum]) -> list[list[Sum]]:
    """Sums split in two without a sum in common, in either order of its terms."""
    pairs = sorted({tuple(sorted((s.left, s.right))) for s in sums})
    side = np.random.default_rng(_SEED).permutation(len(pairs)) % SPLITS
    side_of = dict(zip(pairs, side.tolist(), strict=True))
    return [
        [s for s in sums if side_of[tuple(sorted((s.left, s.right)))] == half]
        for half in range(SPLITS)
    ]


def shifted(problem: Sum) -> str:
    """The answer as the base never writes it: each digit one up.

    Example:
        >>> shifted(Sum(47, 85))
        '243'
    """
    return "".join(str((int(digit) + 1) % 10) for digit in problem.answer)
