"""Published claims, and the rule by which runs agree with them.

A verdict depends on every run: one group is above another only if its minimum is above the other's
maximum. If the ranges overlap, the runs cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from plan import BASE
from problem import HELD_OUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from figures import Figures

__all__ = [
    "AGREES",
    "CANNOT_TELL",
    "DISAGREES",
    "MUKHERJEE",
    "PATH",
    "RAZOR",
    "TINY",
    "Claim",
    "above",
    "holds",
    "points",
    "standard_error",
    "unchanged",
]

AGREES: Final = "agrees"
DISAGREES: Final = "disagrees"
CANNOT_TELL: Final = "cannot tell"

MUKHERJEE: Final = "Mukherjee et al., arXiv 2505.11711"
PATH: Final = "Zhu et al., *The Path Not Taken*, arXiv 2511.08567"
RAZOR: Final = "Shenfeld et al., *RL's Razor*, arXiv 2509.04259"

TINY: Final = (
    "One tiny base and one task; the product of rate and updates was chosen to resemble published "
    "RL."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published claim and its verdict.

    Attributes:
        claim: The claim.
        source: Its authors.
        verdict: Whether these runs agree, disagree or cannot tell.
        finding: The figures behind the verdict.
        confounds: Other explanations.
    """

    claim: str
    source: str
    verdict: str
    finding: str
    confounds: str


def above(left: Sequence[float], right: Sequence[float]) -> str:
    """Whether all values of one group are above all values of another.

    Example:
        >>> above([0.8, 0.9], [0.1]), above([0.1], [0.8]), above([0.1, 0.9], [0.5])
        ('agrees', 'disagrees', 'cannot tell')
    """
    if min(left) > max(right):
        return AGREES
    return DISAGREES if max(left) < min(right) else CANNOT_TELL


def holds(*conditions: bool) -> str:
    """The verdict of conditions: all, none or some of them hold."""
    if all(conditions):
        return AGREES
    return CANNOT_TELL if any(conditions) else DISAGREES


def unchanged(figures: Figures, *labels: str) -> list[float]:
    """Unchanged shares of runs on the first half of the data, which every label has."""
    runs = chain.from_iterable(figures.labelled(label) for label in labels)
    return [figures.unchanged(run.name) for run in runs if run.split == 0]


def points(shares: Sequence[float]) -> str:
    """Minimum and maximum of differences of shares, in percentage points.

    Example:
        >>> points([0.05, 0.071])
        '5.0 to 7.1 points'
    """
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} points"


def standard_error(figures: Figures) -> float:
    """Standard error of the base's score over samples of held-out sums."""
    score = figures.scores()[BASE]
    return float((score * (1 - score) / HELD_OUT) ** 0.5)
