"""The task: sums of the demonstration, split in two halves, and three notations of answers.

The base is undecided between forward and reversed digits. Only the forward notation is rewarded,
so reinforcement learning brings out a behavior that the base has. The third notation, digits
shifted by one, is not in the base; it stands for supervised training on foreign data.
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
    """The training set."""
    return split_sums(HELD_OUT, _SEED)[0]


def held_out() -> list[Sum]:
    """The held-out set."""
    return split_sums(HELD_OUT, _SEED)[1]


def halves(sums: Sequence[Sum]) -> list[list[Sum]]:
    """Two disjoint halves of sums. Both orders of two terms are in the same half."""
    pairs = sorted({tuple(sorted((s.left, s.right))) for s in sums})
    side = np.random.default_rng(_SEED).permutation(len(pairs)) % SPLITS
    side_of = dict(zip(pairs, side.tolist(), strict=True))
    return [
        [s for s in sums if side_of[tuple(sorted((s.left, s.right)))] == half]
        for half in range(SPLITS)
    ]


def shifted(problem: Sum) -> str:
    """The answer in a notation that the base does not have: each digit plus one, modulo 10.

    Example:
        >>> shifted(Sum(47, 85))
        '243'
    """
    return "".join(str((int(digit) + 1) % 10) for digit in problem.answer)
