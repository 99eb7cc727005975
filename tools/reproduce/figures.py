"""The numbers that tables and claims are about, each by its command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from plan import BASE, BASE_FLOAT32, FLOAT32, NULL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evidence import Evidence, Json
    from plan import Plan, Run

__all__ = ["CHANCES", "Figures", "Overlap", "base_of"]

CHANCES: Final = ("uniform", "tensor", "magnitude")


def base_of(name: str) -> str:
    """The base that a run is stored against."""
    return BASE_FLOAT32 if name.endswith(FLOAT32) else BASE


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two runs have in common.

    Attributes:
        a: A run.
        b: Another.
        one_sided: Share of what the first changed that the second changed, too.
        chance: That share by chance, in the order of :data:`CHANCES`.
        lift: Shared words over those by chance, in the same order.
        jaccard: Words both changed, over words either changed.
        same_value: Share of the words both changed that have the same value.
    """

    a: str
    b: str
    one_sided: float
    chance: tuple[float, ...]
    lift: tuple[float, ...]
    jaccard: float
    same_value: float


class Figures:
    """Numbers about the runs of a plan.

    Args:
        evidence: Where they come from.
        plan: The plan.
    """

    def __init__(self, evidence: Evidence, plan: Plan) -> None:
        self.evidence = evidence
        self.plan = plan
        self.runs = [*plan.first(), *plan.second()]

    def labelled(self, label: str) -> list[Run]:
        """The runs of a label, over seeds and splits."""
        return [run for run in self.runs if run.label == label]

    def names(self, label: str) -> list[str]:
        """Names of the runs of a label."""
        return [run.name for run in self.labelled(label)]

    # --- inspect ----------------------------------------------------------------------------------

    def report(self, name: str) -> Json:
        """All that ``inspect`` says of a run."""
        return self.evidence.ask(_inspect(name))

    def values(self, name: str) -> Json:
        """What ``inspect`` measures of a run's values."""
        values: Json = self.report(name)["values"]
        return values

    def unchanged(self, name: str) -> float:
        """The share of weights whose bits are the base's."""
        return 1 - float(self.values(name)["density"])

    def within(self, name: str) -> float:
        """The share of weights within 1e-5 of the base."""
        return float(self.values(name)["unchanged_within"]["1e-05"])

    def groups(self, name: str, kind: str) -> dict[str, float]:
        """Unchanged shares by ``layers``, ``modules`` or ``blocks``."""
        return {group["name"]: 1 - group["density"] for group in self.values(name)[kind]}

    def rank_share(self, name: str) -> float:
        """The mean rank of some updates, over the full one."""
        shares = [float(rank["share"]) for rank in self.values(name)["ranks"]]
        return sum(shares) / len(shares)

    def small_share(self, name: str) -> tuple[float, float]:
        """Changed shares of the smaller and of the larger half of the base's weights.

        They are parted at an exponent, the one that comes nearest to halves.
        """
        table = self.values(name)["exponents"]
        words, changed = table["words"], table["changed"]
        cut = min(range(1, len(words)), key=lambda i: abs(sum(words[:i]) - sum(words[i:])))
        small = sum(changed[:cut]) / sum(words[:cut])
        return small, sum(changed[cut:]) / sum(words[cut:])

    # --- compare, match, series, score ------------------------------------------------------------

    def overlaps(self, names: Sequence[str]) -> list[Overlap]:
        """What each two of some runs have in common."""
        pairs = self.evidence.ask(_compare(names))["pairs"]
        return [_overlap(pair) for pair in pairs]

    def matched(self, run: Run) -> Json:
        """How near a run by a mask comes to the run whose changes made the mask."""
        return self.evidence.ask(_match(run))

    def series(self, name: str) -> Json:
        """How a run went on."""
        return self.evidence.ask(f"rlsparse series {name} --base {BASE}")

    def scores(self, base: str = BASE) -> dict[str, float]:
        """The share of held-out sums that each run, and the base, gets right."""
        names = [name for name in self.stored() if base_of(name) == base]
        found: dict[str, float] = self.evidence.ask(f"score.py --base {base} {' '.join(names)}")[
            "scores"
        ]
        return found

    # --- All of them ------------------------------------------------------------------------------

    def stored(self) -> list[str]:
        """Every single delta."""
        names = [run.name for run in self.runs if not run.checkpoints]
        for run in self.runs:
            if run.float32:
                names += [run.name + FLOAT32, run.name + NULL]
        return names


def _inspect(name: str) -> str:
    return f"rlsparse inspect {name} --base {base_of(name)} --rank"


def _compare(names: Iterable[str]) -> str:
    return f"rlsparse compare {' '.join(names)} --base {BASE}"


def _match(run: Run) -> str:
    return f"rlsparse match {run.masked_by} {run.name} --base {BASE}"


def _overlap(pair: Any) -> Overlap:  # noqa: ANN401 - JSON
    overall = pair["overall"]
    return Overlap(
        a=pair["a"],
        b=pair["b"],
        one_sided=overall["one_sided_a"],
        chance=tuple(overall["expected"][kind] / overall["changed_a"] for kind in CHANCES),
        lift=tuple(overall["lift"][kind] for kind in CHANCES),
        jaccard=overall["jaccard"],
        same_value=overall["same_value"],
    )
