"""The tables of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from figures import CHANCES, Overlap
from plan import ALGORITHMS, BASE, BASE_FLOAT32, FLOAT32, NULL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from figures import Figures

__all__ = [
    "TABLES",
    "Table",
    "algorithm_overlaps",
    "data_overlaps",
    "null_overlaps",
    "seed_overlaps",
    "share",
    "spread",
]

ABLATIONS: Final = (
    "grpo",
    "grpo-kl",
    "grpo-unclipped",
    "grpo-stale",
    "grpo10",
    "grpo10-kl",
    "grpo10-unclipped",
    "grpo10-stale",
    "rft",
    "sft",
    "sft-foreign",
)

MASKED: Final = {
    "exact": "what full training changed",
    "random": "as many by chance",
    "magnitude": "as many of each magnitude by chance",
}

WHAT: Final = {
    "sft10": "SFT, right answers, 10 × the learning rate",
    "sft": "SFT, right answers",
    "sft-foreign": "SFT, answers that the base never gives",
    "rft": "SFT on the base's right answers (RFT)",
    "dpo": "DPO",
    "simpo": "SimPO",
    "ppo": "PPO",
    "grpo": "GRPO",
    "prime": "PRIME",
    "grpo-kl": "GRPO with a KL penalty of 0.04",
    "grpo-unclipped": "GRPO without clipping",
    "grpo-stale": "GRPO on the base's answers",
    "grpo10": "GRPO, 10 × the learning rate",
    "grpo10-kl": "the same with a KL penalty of 0.04",
    "grpo10-unclipped": "the same without clipping",
    "grpo10-stale": "the same on the base's answers",
    "grpo-pure": "GRPO, weights trained in bfloat16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table and what to know of it.

    Attributes:
        title: Its title.
        about: What it shows.
        head: Names of the columns.
        rows: Cells, the first of each row to the left and the others to the right.
        picture: Name of the picture of it, if there is one.
    """

    title: str
    about: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    picture: str = ""


def share(value: float) -> str:
    """A share in percent.

    Example:
        >>> share(0.80511)
        '80.5 %'
    """
    return f"{100 * value:.1f} %"


def spread(values: Iterable[float]) -> str:
    """The mean of some shares, and the least and largest.

    Example:
        >>> spread([0.25, 0.75])
        '50.0 % (25.0–75.0)'
    """
    known = list(values)
    least, largest = f"{100 * min(known):.1f}", f"{100 * max(known):.1f}"
    mean = share(sum(known) / len(known))
    return mean if least == largest else f"{mean} ({least}–{largest})"


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


# --- Sparsity -------------------------------------------------------------------------------------


def by_algorithm(figures: Figures) -> Table:
    """Sparsity of every algorithm."""
    scores = figures.scores()
    rows = []
    for label in ALGORITHMS:
        names = figures.names(label)
        rows.append(
            [
                f"{WHAT[label]}: `{label}`",
                spread(map(figures.unchanged, names)),
                spread(map(figures.within, names)),
                spread(scores[name] for name in names),
                f"{_mean(figures.report(name)['bits_per_changed'] for name in names):.2f}",
            ]
        )
    return Table(
        title="Sparsity by algorithm",
        about=(
            f"Means over {figures.plan.seeds} seeds and two halves of the data, least and largest "
            f"in brackets; behind the colon, what commands and pictures call the run. The base gets {share(scores[BASE])} of the held-out sums right. The "
            "last column is what the stored delta takes, all of it, in bits per changed weight."
        ),
        head=["run", "unchanged, exact", "within 1e-5", "right answers", "bits"],
        rows=rows,
        picture="sparsity",
    )


def _grouped(figures: Figures, kind: str, title: str, about: str) -> Table:
    rows = []
    columns: list[str] = []
    for label in ALGORITHMS:
        each = [figures.groups(name, kind) for name in figures.names(label)]
        columns = list(each[0])
        means = [share(_mean(groups[column] for groups in each)) for column in columns]
        rows.append([WHAT[label], *means])
    return Table(title=title, about=about, head=["run", *columns], rows=rows)


def by_layer(figures: Figures) -> Table:
    """Sparsity of every layer."""
    about = "Unchanged weights, exact; `other` is what lies outside the layers."
    return _grouped(figures, "layers", "Sparsity by layer", about)


def by_module(figures: Figures) -> Table:
    """Sparsity of every kind of module."""
    about = "Unchanged weights, exact."
    return _grouped(figures, "modules", "Sparsity by module", about)


def ablations(figures: Figures) -> Table:
    """What a penalty, clipping, the data and the learning rate change."""
    scores = figures.scores()
    rows = []
    for label in ABLATIONS:
        names = [run.name for run in figures.labelled(label) if run.split == 0]
        unchanged = [figures.unchanged(name) for name in names]
        rows.append([WHAT[label], spread(unchanged), spread(scores[name] for name in names)])
    return Table(
        title="Ablations: KL penalty, clipping, whose answers, learning rate",
        about=f"The first half of the data, {figures.plan.seeds} seeds.",
        head=["run", "unchanged, exact", "right answers"],
        rows=rows,
    )


def storage(figures: Figures) -> Table:
    """What the dtype of the stored weights changes."""
    scores, wide = figures.scores(), figures.scores(BASE_FLOAT32)
    rows = []
    for label in ("sft10", "sft", "grpo"):
        names = [run.name for run in figures.labelled(label) if run.split == 0]
        for ending, right, how in (("", scores, "bfloat16"), (FLOAT32, wide, "float32")):
            stored = [name + ending for name in names]
            unchanged = spread(map(figures.unchanged, stored))
            rows.append([WHAT[label], how, unchanged, spread(right[name] for name in stored)])
    pure = figures.names("grpo-pure")
    unchanged = spread(map(figures.unchanged, pure))
    rows.append([WHAT["grpo-pure"], "bfloat16", unchanged, spread(scores[n] for n in pure)])
    return Table(
        title="The same runs stored in float32 and in bfloat16",
        about="All but the last row have float32 masters: the very same model, stored twice.",
        head=["run", "stored in", "unchanged, exact", "right answers"],
        rows=rows,
    )


def magnitudes(figures: Figures) -> Table:
    """Where changes fall."""
    rows = []
    for label in (*ALGORITHMS, "grpo-null"):
        names = _nulls(figures, "grpo") if label == "grpo-null" else figures.names(label)
        parts = [figures.small_share(name) for name in names]
        half = [figures.values(name)["exponents"]["half_magnitude"] for name in names]
        rows.append(
            [
                WHAT.get(label, "GRPO, its update shuffled"),
                spread(small for small, _ in parts),
                spread(large for _, large in parts),
                "–" if None in half else f"{_mean(half):.2g}",
                spread(map(figures.rank_share, names)),
            ]
        )
    return Table(
        title="Where changes fall, and the rank of updates",
        about=(
            "Changed share of the smaller and the larger half of the base's weights; the "
            "magnitude at which a change is as likely as not; rank of the update over the full "
            "rank, the mean of eight matrices."
        ),
        head=["run", "smaller half", "larger half", "half at", "rank"],
        rows=rows,
        picture="magnitudes",
    )


# --- Overlap --------------------------------------------------------------------------------------


def _nulls(figures: Figures, label: str) -> list[str]:
    return [run.name + NULL for run in figures.labelled(label) if run.split == 0]


def seed_overlaps(figures: Figures, label: str) -> list[Overlap]:
    """Runs that differ in their seed."""
    return figures.overlaps([run.name for run in figures.labelled(label) if run.split == 0])


def data_overlaps(figures: Figures, label: str) -> list[Overlap]:
    """Runs that differ in their data."""
    first = [run for run in figures.labelled(label) if run.split == 0]
    return [
        overlap
        for run in first
        for other in figures.labelled(label)
        if other.seed == run.seed and other.split == 1
        for overlap in figures.overlaps([run.name, other.name])
    ]


def algorithm_overlaps(figures: Figures, left: str, right: str) -> list[Overlap]:
    """Runs that differ in their algorithm."""
    found = []
    for seed in range(figures.plan.seeds):
        every = figures.overlaps([f"{label}-s{seed}-d0" for label in ALGORITHMS])
        wanted = {f"{left}-s{seed}-d0", f"{right}-s{seed}-d0"}
        found += [overlap for overlap in every if {overlap.a, overlap.b} == wanted]
    return found


def null_overlaps(figures: Figures, label: str) -> list[Overlap]:
    """Runs of a label, each against another one's update, shuffled."""
    names = [run.name for run in figures.labelled(label) if run.split == 0]
    nulls = _nulls(figures, label)
    turned = [*nulls[1:], nulls[0]]
    return [o for pair in zip(names, turned, strict=True) for o in figures.overlaps(pair)]


def overlaps(figures: Figures) -> Table:
    """Overlaps beside what chance gives."""
    rows = [
        _overlap_row(f"{WHAT[label]}: other seed", seed_overlaps(figures, label))
        for label in ALGORITHMS
    ]
    rows += [
        _overlap_row(f"{WHAT[label]}: other data", data_overlaps(figures, label))
        for label in ALGORITHMS
    ]
    others = [*pairwise(ALGORITHMS), ("dpo", "grpo"), ("sft", "grpo"), ("sft10", "grpo")]
    rows += [
        _overlap_row(f"{WHAT[left]} and {WHAT[right]}", algorithm_overlaps(figures, left, right))
        for left, right in others
    ]
    rows += [
        _overlap_row(
            f"{WHAT[label]} and another seed's update, shuffled", null_overlaps(figures, label)
        )
        for label in ("sft10", "sft", "grpo")
    ]
    return Table(
        title="Overlap by seed, data and algorithm",
        about=(
            "Share of the words changed in one run that the other changed, too; the same by "
            "chance, given the two densities (*uniform*), those of each tensor (*tensor*), and "
            "those of each tensor at each exponent of the base (*magnitude*); how many times more "
            "words are shared than by the last. A shuffled update is a null: it moves as far as "
            "the run, to nowhere in particular. Means of all pairs."
        ),
        head=["runs", "shared", *CHANCES, "over magnitude", "Jaccard", "same value"],
        rows=rows,
        picture="overlap",
    )


def _overlap_row(what: str, found: Sequence[Overlap]) -> list[str]:
    chances = [share(_mean(o.chance[i] for o in found)) for i in range(len(CHANCES))]
    lifts = [o.lift[-1] for o in found]
    return [
        what,
        share(_mean(o.one_sided for o in found)),
        *chances,
        f"{_mean(lifts):.2f} ({min(lifts):.2f}–{max(lifts):.2f})",
        f"{_mean(o.jaccard for o in found):.3f}",
        share(_mean(o.same_value for o in found)),
    ]


# --- Subnetworks and time -------------------------------------------------------------------------


def subnetworks(figures: Figures) -> Table:
    """Training by a mask against training in full."""
    scores = figures.scores()
    rows = []
    for label in ("dpo", "prime"):
        full = [run.name for run in figures.labelled(label) if run.split == 0]
        rows.append([f"{WHAT[label]}: in full", "", "", "", "", spread(scores[n] for n in full)])
        runs = figures.labelled(f"{label}-exact")
        before = [figures.matched(run)["everything"]["base_and_full"] for run in runs]
        rows.append([f"{WHAT[label]}: not at all (the base)", *_matches(before), "", ""])
        for mask in ("exact", "random", "magnitude"):
            runs = figures.labelled(f"{label}-{mask}")
            matches = [figures.matched(run) for run in runs]
            rows.append(
                [
                    f"{WHAT[label]}: {MASKED[mask]}",
                    *_matches([match["everything"]["full_and_sub"] for match in matches]),
                    f"{sum(match['sub_outside'] for match in matches):,}"
                    if mask == "exact"
                    else "",
                    spread(scores[run.name] for run in runs),
                ]
            )
    return Table(
        title="Training only the subnetwork",
        about=(
            "Share of weights that are the same as after training in full, by bits and within "
            "1e-5 and 1e-4; weights outside the mask that changed. The mask is what full training "
            "changed; the controls have as many weights of each tensor by chance, and as many of "
            "each tensor at each exponent. `rlsparse mask` made them:\n\n"
            + "\n".join(f"    {run.mask_command}" for run in figures.plan.second())
        ),
        head=["trained", "bits", "1e-5", "1e-4", "outside", "right answers"],
        rows=rows,
    )


def _matches(matches: Sequence[dict[str, float]]) -> list[str]:
    return [spread(match[near] for match in matches) for near in ("bits", "1e-05", "0.0001")]


def over_time(figures: Figures) -> Table:
    """A long run."""
    (run,) = figures.labelled("grpo-long")
    series = figures.series(run.name)
    words = series["words"]
    updates = round(figures.plan.updates * run.steps)
    rows = [
        [
            f"{updates * number // run.checkpoints}",
            share(1 - step["density"]),
            share(1 - step["moved"] / words),
            "–" if step["locality"] is None else share(step["locality"]),
        ]
        for number, step in enumerate(series["steps"], 1)
    ]
    ever, final = series["ever_changed"], series["finally_changed"]
    return Table(
        title="A longer run of GRPO, checkpoint by checkpoint",
        about=(
            f"Of all weights, {share(1 - ever / words)} never changed in a checkpoint, "
            f"{share(series['cancelled'] / words)} changed and came back, {share(final / words)} "
            f"differ at the end. {share(series['outside_final'])} of what ever changed is outside "
            "the final mask."
        ),
        head=["updates", "as in the base", "as in the one before", "moved before"],
        rows=rows,
        picture="series",
    )


TABLES: Final = (
    by_algorithm,
    by_layer,
    by_module,
    ablations,
    storage,
    magnitudes,
    overlaps,
    subnetworks,
    over_time,
)
