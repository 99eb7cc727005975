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
    "exact": "the weights that full training changed",
    "random": "random mask",
    "magnitude": "random mask matched on magnitude",
}

NAMES: Final = {
    "sft10": "SFT, correct answers, 10 × the learning rate",
    "sft": "SFT, correct answers",
    "sft-foreign": "SFT, answers that the base never gives",
    "rft": "SFT on the base's correct answers (RFT)",
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
    """A table.

    Attributes:
        title: Title.
        about: Description.
        head: Column headings.
        rows: Cells. The first column is aligned left, the others right.
        picture: Name of its picture; empty if it has none.
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
    """Mean, minimum and maximum of shares.

    Example:
        >>> spread([0.25, 0.75])
        '50.0 % (25.0–75.0)'
    """
    shares = list(values)
    lowest, highest = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    mean = share(sum(shares) / len(shares))
    return mean if lowest == highest else f"{mean} ({lowest}–{highest})"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


# --- Sparsity -------------------------------------------------------------------------------------


def by_algorithm(figures: Figures) -> Table:
    """Sparsity by algorithm."""
    scores = figures.scores()
    rows = []
    for label in ALGORITHMS:
        names = figures.names(label)
        rows.append(
            [
                f"{NAMES[label]}: `{label}`",
                spread(map(figures.unchanged, names)),
                spread(map(figures.within, names)),
                spread(scores[name] for name in names),
                f"{_mean(figures.report(name)['bits_per_changed'] for name in names):.2f}",
            ]
        )
    return Table(
        title="Sparsity by algorithm",
        about=(
            f"Means over {figures.plan.seeds} seeds and two halves of the data, with minimum and "
            "maximum in brackets. The name after the colon is that of the run in commands and "
            f"pictures. The base answers {share(scores[BASE])} of the held-out sums correctly. The "
            "last column is the size of the whole delta in bits per changed weight."
        ),
        head=["run", "unchanged, exact", "within 1e-5", "correct answers", "bits"],
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
        rows.append([NAMES[label], *means])
    return Table(title=title, about=about, head=["run", *columns], rows=rows)


def by_layer(figures: Figures) -> Table:
    """Sparsity by layer."""
    about = "Unchanged weights, exact; `other` is all tensors outside the layers."
    return _grouped(figures, "layers", "Sparsity by layer", about)


def by_module(figures: Figures) -> Table:
    """Sparsity by kind of module."""
    about = "Unchanged weights, exact."
    return _grouped(figures, "modules", "Sparsity by module", about)


def ablations(figures: Figures) -> Table:
    """Effects of a KL penalty, clipping, the source of answers, and the learning rate."""
    scores = figures.scores()
    rows = []
    for label in ABLATIONS:
        names = [run.name for run in figures.labelled(label) if run.split == 0]
        unchanged = [figures.unchanged(name) for name in names]
        rows.append([NAMES[label], spread(unchanged), spread(scores[name] for name in names)])
    return Table(
        title="Ablations: KL penalty, clipping, source of answers, learning rate",
        about=f"The first half of the data, {figures.plan.seeds} seeds.",
        head=["run", "unchanged, exact", "correct answers"],
        rows=rows,
    )


def storage(figures: Figures) -> Table:
    """Effect of the stored dtype."""
    scores, wide = figures.scores(), figures.scores(BASE_FLOAT32)
    rows = []
    for label in ("sft10", "sft", "grpo"):
        names = [run.name for run in figures.labelled(label) if run.split == 0]
        for ending, right, how in (("", scores, "bfloat16"), (FLOAT32, wide, "float32")):
            stored = [name + ending for name in names]
            unchanged = spread(map(figures.unchanged, stored))
            rows.append([NAMES[label], how, unchanged, spread(right[name] for name in stored)])
    pure = figures.names("grpo-pure")
    unchanged = spread(map(figures.unchanged, pure))
    rows.append([NAMES["grpo-pure"], "bfloat16", unchanged, spread(scores[n] for n in pure)])
    return Table(
        title="The same runs stored in float32 and in bfloat16",
        about="All rows but the last have float32 masters: the same model, stored twice.",
        head=["run", "stored in", "unchanged, exact", "correct answers"],
        rows=rows,
    )


def magnitudes(figures: Figures) -> Table:
    """Changes by magnitude, and ranks."""
    rows = []
    for label in (*ALGORITHMS, "grpo-null"):
        names = _nulls(figures, "grpo") if label == "grpo-null" else figures.names(label)
        parts = [figures.small_share(name) for name in names]
        half = [figures.values(name)["exponents"]["half_magnitude"] for name in names]
        rows.append(
            [
                NAMES.get(label, "GRPO, shuffled update"),
                spread(small for small, _ in parts),
                spread(large for _, large in parts),
                "–" if None in half else f"{_mean(half):.2g}",
                spread(map(figures.rank_share, names)),
            ]
        )
    return Table(
        title="Changes by magnitude, and rank of updates",
        about=(
            "Changed share of the smaller and the larger half of the base's weights; the "
            "magnitude at which half of the weights changed; rank of the update divided by the "
            "full rank, mean of eight matrices."
        ),
        head=["run", "smaller half", "larger half", "half at", "rank"],
        rows=rows,
        picture="magnitudes",
    )


# --- Overlap --------------------------------------------------------------------------------------


def _nulls(figures: Figures, label: str) -> list[str]:
    return [run.name + NULL for run in figures.labelled(label) if run.split == 0]


def seed_overlaps(figures: Figures, label: str) -> list[Overlap]:
    """Pairs of runs with different seeds."""
    return figures.overlaps([run.name for run in figures.labelled(label) if run.split == 0])


def data_overlaps(figures: Figures, label: str) -> list[Overlap]:
    """Pairs of runs with different data."""
    first = [run for run in figures.labelled(label) if run.split == 0]
    return [
        overlap
        for run in first
        for other in figures.labelled(label)
        if other.seed == run.seed and other.split == 1
        for overlap in figures.overlaps([run.name, other.name])
    ]


def algorithm_overlaps(figures: Figures, left: str, right: str) -> list[Overlap]:
    """Pairs of runs with different algorithms."""
    pairs = []
    for seed in range(figures.plan.seeds):
        overlaps = figures.overlaps([f"{label}-s{seed}-d0" for label in ALGORITHMS])
        names = {f"{left}-s{seed}-d0", f"{right}-s{seed}-d0"}
        pairs += [overlap for overlap in overlaps if {overlap.a, overlap.b} == names]
    return pairs


def null_overlaps(figures: Figures, label: str) -> list[Overlap]:
    """Pairs of a run and the shuffled update of another seed."""
    names = [run.name for run in figures.labelled(label) if run.split == 0]
    nulls = _nulls(figures, label)
    shifted = [*nulls[1:], nulls[0]]
    return [o for pair in zip(names, shifted, strict=True) for o in figures.overlaps(pair)]


def overlaps(figures: Figures) -> Table:
    """Overlaps, with those expected by chance."""
    rows = [
        _overlap_row(f"{NAMES[label]}: other seed", seed_overlaps(figures, label))
        for label in ALGORITHMS
    ]
    rows += [
        _overlap_row(f"{NAMES[label]}: other data", data_overlaps(figures, label))
        for label in ALGORITHMS
    ]
    others = [*pairwise(ALGORITHMS), ("dpo", "grpo"), ("sft", "grpo"), ("sft10", "grpo")]
    rows += [
        _overlap_row(f"{NAMES[left]} and {NAMES[right]}", algorithm_overlaps(figures, left, right))
        for left, right in others
    ]
    rows += [
        _overlap_row(
            f"{NAMES[label]} and the shuffled update of another seed",
            null_overlaps(figures, label),
        )
        for label in ("sft10", "sft", "grpo")
    ]
    return Table(
        title="Overlap by seed, data and algorithm",
        about=(
            "Share of the words changed by one run that the other changed too; the share expected "
            "by chance, matched on the overall densities (*uniform*), on the densities of each "
            "tensor (*tensor*), and on those of each tensor at each exponent of the base "
            "(*magnitude*); overlap divided by the last of these. A shuffled update is the null: "
            "an update of the same size in random positions. Means over all pairs."
        ),
        head=["runs", "shared", *CHANCES, "over magnitude", "Jaccard", "same value"],
        rows=rows,
        picture="overlap",
    )


def _overlap_row(name: str, pairs: Sequence[Overlap]) -> list[str]:
    chances = [share(_mean(o.chance[i] for o in pairs)) for i in range(len(CHANCES))]
    lifts = [o.lift[-1] for o in pairs]
    return [
        name,
        share(_mean(o.one_sided for o in pairs)),
        *chances,
        f"{_mean(lifts):.2f} ({min(lifts):.2f}–{max(lifts):.2f})",
        f"{_mean(o.jaccard for o in pairs):.3f}",
        share(_mean(o.same_value for o in pairs)),
    ]


# --- Subnetworks and time -------------------------------------------------------------------------


def subnetworks(figures: Figures) -> Table:
    """Training with a mask against full training."""
    scores = figures.scores()
    rows = []
    for label in ("dpo", "prime"):
        full = [run.name for run in figures.labelled(label) if run.split == 0]
        rows.append(
            [f"{NAMES[label]}: full training", "", "", "", "", spread(scores[n] for n in full)]
        )
        runs = figures.labelled(f"{label}-exact")
        before = [figures.match(run)["everything"]["base_and_full"] for run in runs]
        rows.append([f"{NAMES[label]}: no training (the base)", *_matches(before), "", ""])
        for mask in ("exact", "random", "magnitude"):
            runs = figures.labelled(f"{label}-{mask}")
            matches = [figures.match(run) for run in runs]
            rows.append(
                [
                    f"{NAMES[label]}: {MASKED[mask]}",
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
            "Share of weights equal to those of full training, by bits and within 1e-5 and 1e-4; "
            "weights outside the mask that changed. The mask selects the weights that full "
            "training changed; the controls are random masks with the same count in each tensor, "
            "and in each tensor at each exponent. Commands that wrote the masks:\n\n"
            + "\n".join(f"    {run.mask_command}" for run in figures.plan.second())
        ),
        head=["training", "bits", "1e-5", "1e-4", "outside", "correct answers"],
        rows=rows,
    )


def _matches(matches: Sequence[dict[str, float]]) -> list[str]:
    return [
        spread(match[tolerance] for match in matches) for tolerance in ("bits", "1e-05", "0.0001")
    ]


def over_time(figures: Figures) -> Table:
    """A longer run of GRPO."""
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
            f"Of all weights, {share(1 - ever / words)} never differ from the base in a checkpoint, "
            f"{share(series['cancelled'] / words)} change and revert to it, and "
            f"{share(final / words)} differ from it at the end. {share(series['outside_final'])} "
            "of the weights that ever changed are outside the final mask."
        ),
        head=["updates", "equal to base", "equal to previous", "moved before"],
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
