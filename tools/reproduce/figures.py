"""The figures of tables and claims, each computed by a command."""

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
    """The base of a run's delta."""
    return BASE_FLOAT32 if name.endswith(FLOAT32) else BASE


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of two runs.

    Attributes:
        a: Name of the first run.
        b: Name of the second run.
        one_sided: Share of the words changed by the first run that the second changed too.
        chance: The share expected by chance, in the order of :data:`CHANCES`.
        lift: Overlap divided by the overlap expected by chance, in the same order.
        jaccard: Words that both changed, divided by words that at least one changed.
        same_value: Share of the words that both changed with the same value.
    """

    a: str
    b: str
    one_sided: float
    chance: tuple[float, ...]
    lift: tuple[float, ...]
    jaccard: float
    same_value: float


class Figures:
    """Figures about the runs of a plan.

    Args:
        evidence: Runs the commands.
        plan: The plan.
    """

    def __init__(self, evidence: Evidence, plan: Plan) -> None:
        self.evidence = evidence
        self.plan = plan
        self.runs = [*plan.first(), *plan.second()]

    def labelled(self, label: str) -> list[Run]:
        """The runs of a label, for all seeds and splits."""
        return [run for run in self.runs if run.label == label]

    def names(self, label: str) -> list[str]:
        """The names of the runs of a label."""
        return [run.name for run in self.labelled(label)]

    # --- inspect ----------------------------------------------------------------------------------

    def report(self, name: str) -> Json:
        """The output of ``inspect`` for a run."""
        return self.evidence.run(_inspect(name))

    def values(self, name: str) -> Json:
        """The values that ``inspect`` measures for a run."""
        values: Json = self.report(name)["values"]
        return values

    def unchanged(self, name: str) -> float:
        """The share of weights with the bits of the base."""
        return 1 - float(self.values(name)["density"])

    def within(self, name: str) -> float:
        """The share of weights within 1e-5 of the base."""
        return float(self.values(name)["unchanged_within"]["1e-05"])

    def groups(self, name: str, kind: str) -> dict[str, float]:
        """Unchanged shares by ``layers``, ``modules`` or ``blocks``."""
        return {group["name"]: 1 - group["density"] for group in self.values(name)[kind]}

    def rank_share(self, name: str) -> float:
        """The mean rank of sampled updates, divided by the full rank."""
        shares = [float(rank["share"]) for rank in self.values(name)["ranks"]]
        return sum(shares) / len(shares)

    def small_share(self, name: str) -> tuple[float, float]:
        """Changed shares of the smaller and of the larger half of the base's weights.

        The split is at the exponent that divides the weights most evenly.
        """
        table = self.values(name)["exponents"]
        words, changed = table["words"], table["changed"]
        cut = min(range(1, len(words)), key=lambda i: abs(sum(words[:i]) - sum(words[i:])))
        small = sum(changed[:cut]) / sum(words[:cut])
        return small, sum(changed[cut:]) / sum(words[cut:])

    # --- compare, match, series, score ------------------------------------------------------------

    def overlaps(self, names: Sequence[str]) -> list[Overlap]:
        """The overlaps of all pairs of runs."""
        pairs = self.evidence.run(_compare(names))["pairs"]
        return [_overlap(pair) for pair in pairs]

    def match(self, run: Run) -> Json:
        """The match of a masked run with the run that its mask comes from."""
        return self.evidence.run(_match(run))

    def series(self, name: str) -> Json:
        """The output of ``series`` for a run."""
        return self.evidence.run(f"rlsparse series {name} --base {BASE}")

    def scores(self, base: str = BASE) -> dict[str, float]:
        """Scores of the base and of each run: shares of held-out sums answered correctly."""
        names = [name for name in self.stored() if base_of(name) == base]
        output = self.evidence.run(f"score.py --base {base} {' '.join(names)}")
        scores: dict[str, float] = output["scores"]
        return scores

    # --- All deltas -------------------------------------------------------------------------------

    def stored(self) -> list[str]:
        """Names of all deltas outside of series."""
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
