"""What a published claim is, and when runs agree with it.

A verdict needs every run: one kind is above another only if its lowest run is above the other's
highest. Where runs of one kind lie on both sides, they cannot tell.
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

TINY: Final = "One tiny base and one task; rate times updates was chosen to resemble published RL."


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published claim, and what became of it here.

    Attributes:
        claim: What was claimed.
        source: By whom.
        verdict: Whether these runs agree, disagree or cannot tell.
        finding: What was found.
        confounds: What else could explain it.
    """

    claim: str
    source: str
    verdict: str
    finding: str
    confounds: str


def above(left: Sequence[float], right: Sequence[float]) -> str:
    """Whether all of one kind are above all of another.

    Example:
        >>> above([0.8, 0.9], [0.1]), above([0.1], [0.8]), above([0.1, 0.9], [0.5])
        ('agrees', 'disagrees', 'cannot tell')
    """
    if min(left) > max(right):
        return AGREES
    return DISAGREES if max(left) < min(right) else CANNOT_TELL


def holds(*each: bool) -> str:
    """Whether something holds of all, of none, or of some."""
    if all(each):
        return AGREES
    return CANNOT_TELL if any(each) else DISAGREES


def unchanged(figures: Figures, *labels: str) -> list[float]:
    """Unchanged shares, of the first half of the data, on which there are runs of every kind."""
    runs = chain.from_iterable(figures.labelled(label) for label in labels)
    return [figures.unchanged(run.name) for run in runs if run.split == 0]


def points(shares: Sequence[float]) -> str:
    """The least and largest of some differences of shares.

    Example:
        >>> points([0.05, 0.071])
        '5.0 to 7.1 points'
    """
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} points"


def standard_error(figures: Figures) -> float:
    """Of the base's score, by the choice of the held-out sums."""
    right = figures.scores()[BASE]
    return float((right * (1 - right) / HELD_OUT) ** 0.5)
