"""Claims about the location of changes, the overlap of runs, and subnetworks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from claims import MUKHERJEE, PATH, Claim, above, holds, points, standard_error
from plan import BASE, ON_POLICY
from tables import algorithm_overlaps, data_overlaps, null_overlaps, seed_overlaps, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from figures import Figures, Overlap

__all__ = ["SUBNETWORK_CLAIMS"]


def everywhere(figures: Figures) -> Claim:
    """Changes are spread evenly."""
    names = [name for label in ON_POLICY for name in figures.names(label)]
    ratios, norms = [], []
    for name in names:
        modules = figures.groups(name, "modules")
        matrices = [1 - u for module, u in modules.items() if module.endswith("_proj")]
        layers = [1 - u for layer, u in figures.groups(name, "layers").items() if layer.isdigit()]
        ratios += [max(matrices) / min(matrices), max(layers) / min(layers)]
        norms.append(figures.groups(name, "blocks")["norm"])
    return Claim(
        claim="Changes are spread evenly over layers and matrices; norms are nearly unchanged.",
        source=MUKHERJEE,
        verdict=holds(max(ratios) < 2, min(norms) > 0.99),
        finding=(
            f"The densest layer or kind of matrix of a run is at most {max(ratios):.2f} times as "
            f"dense as its sparsest (criterion: below 2); {spread(norms)} of the norms are unchanged "
            "(criterion: over 99 %)."
        ),
        confounds="Norms are close to 1, where bfloat16 is coarse: precision may be the reason, not learning.",
    )


def small_weights(figures: Figures) -> Claim:
    """Small weights change."""
    names = [name for label in ON_POLICY for name in figures.names(label)]
    parts = [figures.small_share(name) for name in names]
    return Claim(
        claim="Updates fall on weights of small magnitude.",
        source=PATH,
        verdict=holds(*(small > large for small, large in parts)),
        finding=(
            f"Of the smaller half of the weights {spread(p[0] for p in parts)} changed, of the "
            f"larger {spread(p[1] for p in parts)}."
        ),
        confounds="A shuffled update does the same: only there is bfloat16 fine enough to store the update.",
    )


def full_rank(figures: Figures) -> Claim:
    """Updates are nearly of full rank."""
    runs = [name for label in (*ON_POLICY, "dpo", "simpo") for name in figures.names(label)]
    ranks = [figures.rank_share(name) for name in runs]
    return Claim(
        claim="Updates are sparse but nearly of full rank (99.2 to 99.8 %).",
        source=MUKHERJEE,
        verdict=holds(*(rank > 0.99 for rank in ranks)),
        finding=f"{spread(ranks)} of the full rank (criterion: over 99 %).",
        confounds="Weak evidence: rounding to bfloat16 alone gives full rank, and so does a shuffled update.",
    )


def overlap_uniform(figures: Figures) -> Claim:
    """Overlaps exceed uniform chance."""
    pairs = _rl_overlaps(figures)
    null = null_overlaps(figures, "grpo")
    return Claim(
        claim="Runs with different seeds, data and algorithms change the same weights far more often than by chance.",
        source=MUKHERJEE,
        verdict=holds(*(o.lift[0] > 1 for o in pairs)),
        finding=(
            f"Lift over uniform chance, as published: {_lifts(pairs, 0)} for pairs of RL runs. But "
            f"a shuffled update reaches {_lifts(null, 0)}."
        ),
        confounds="Uniform chance ignores that small weights change in any run.",
    )


def overlap_magnitude(figures: Figures) -> Claim:
    """Overlaps exceed chance at the same magnitude."""
    pairs, null = _rl_overlaps(figures), null_overlaps(figures, "grpo")
    return Claim(
        claim="The overlap exceeds what tensor and magnitude explain.",
        source="tested here; not in the papers",
        verdict=above([o.lift[2] for o in pairs], [o.lift[2] for o in null]),
        finding=(
            f"Lift over chance matched on tensor and exponent: {_lifts(pairs, 2)}; for a shuffled "
            f"update {_lifts(null, 2)}. The verdict tests whether every pair is above every null."
        ),
        confounds="Runs share the base and the task, and thus the first gradient; some rows and columns are active in any run.",
    )


def _rl_overlaps(figures: Figures) -> list[Overlap]:
    pairs = [o for label in ON_POLICY for o in seed_overlaps(figures, label)]
    pairs += [o for label in ON_POLICY for o in data_overlaps(figures, label)]
    return [*pairs, *algorithm_overlaps(figures, "dpo", "grpo")]


def _lifts(pairs: Sequence[Overlap], chance: int) -> str:
    lifts = [overlap.lift[chance] for overlap in pairs]
    return f"{min(lifts):.2f} to {max(lifts):.2f}"


def same_model(figures: Figures) -> Claim:
    """The subnetwork alone gives the same weights."""
    shares: dict[str, list[float]] = {"exact": [], "random": [], "magnitude": []}
    base, loose = [], []
    for label in ("dpo", "prime"):
        for mask, matches in shares.items():
            for run in figures.labelled(f"{label}-{mask}"):
                everything = figures.match(run)["everything"]
                matches.append(everything["full_and_sub"]["1e-05"])
                if mask == "exact":
                    base.append(everything["base_and_full"]["1e-05"])
                    loose.append(everything["base_and_full"]["0.0001"])
    controls = [*shares["random"], *shares["magnitude"], *base]
    return Claim(
        claim="Training only the subnetwork gives the same weights: 90.5 to 94 % within 1e-5, all within 1e-4.",
        source=MUKHERJEE,
        verdict=above(shares["exact"], controls),
        finding=(
            f"Within 1e-5: {spread(shares['exact'])} with the mask, {spread(shares['random'])} with "
            f"a random mask, {spread(shares['magnitude'])} with a random mask matched on magnitude, "
            f"{spread(base)} without training. Within 1e-4, no training gives {spread(loose)}. The "
            "verdict tests whether the mask is above all controls."
        ),
        confounds="The mask comes from the run that it is compared with.",
    )


def same_score(figures: Figures) -> Claim:
    """The subnetwork alone gives the same score."""
    scores = figures.scores()
    gains: dict[str, list[float]] = {"full": [], "exact": [], "random": [], "magnitude": []}
    for label in ("dpo", "prime"):
        for kind, kind_gains in gains.items():
            runs = figures.labelled(label if kind == "full" else f"{label}-{kind}")
            kind_gains += [scores[run.name] - scores[BASE] for run in runs if run.split == 0]
    error = standard_error(figures)
    lost = [f - e for f, e in zip(gains["full"], gains["exact"], strict=True)]
    return Claim(
        claim="Training only the subnetwork reaches the score of full training, or a better one.",
        source=MUKHERJEE,
        verdict=holds(*(loss <= 2 * error for loss in lost)),
        finding=(
            f"Gains over the base: {points(gains['full'])} with full training, "
            f"{points(gains['exact'])} with the mask, {points(gains['random'])} with a random mask, "
            f"{points(gains['magnitude'])} with a random mask matched on magnitude. The standard "
            f"error is {100 * error:.1f} points; the verdict allows two."
        ),
        confounds="If the controls gain as much, the score says nothing about the subnetwork.",
    )


SUBNETWORK_CLAIMS: Final = (
    everywhere,
    small_weights,
    full_rank,
    overlap_uniform,
    overlap_magnitude,
    same_model,
    same_score,
)
