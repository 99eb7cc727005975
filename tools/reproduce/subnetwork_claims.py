"""What was claimed about where changes fall, what runs share, and subnetworks."""

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
    """Layers and matrices alike, norms untouched."""
    names = [name for label in ON_POLICY for name in figures.names(label)]
    ratios, norms = [], []
    for name in names:
        modules = figures.groups(name, "modules")
        matrices = [1 - u for module, u in modules.items() if module.endswith("_proj")]
        layers = [1 - u for layer, u in figures.groups(name, "layers").items() if layer.isdigit()]
        ratios += [max(matrices) / min(matrices), max(layers) / min(layers)]
        norms.append(figures.groups(name, "blocks")["norm"])
    return Claim(
        claim="Changes are spread alike over layers and matrices; norms are nearly untouched.",
        source=MUKHERJEE,
        verdict=holds(max(ratios) < 2, min(norms) > 0.99),
        finding=(
            f"The densest layer or kind of matrix of a run is at most {max(ratios):.2f} times as "
            f"dense as its sparsest (asked: below 2); of the norms {spread(norms)} are unchanged "
            "(asked: over 99 %)."
        ),
        confounds="Norms lie near 1, where bfloat16 is coarse: precision, not learning, may explain it.",
    )


def small_weights(figures: Figures) -> Claim:
    """Changes fall on small weights."""
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
        confounds="A shuffled update does the same: it is where bfloat16 is fine enough to show them.",
    )


def full_rank(figures: Figures) -> Claim:
    """Updates are nearly of full rank."""
    runs = [name for label in (*ON_POLICY, "dpo", "simpo") for name in figures.names(label)]
    ranks = [figures.rank_share(name) for name in runs]
    return Claim(
        claim="Updates are sparse but nearly of full rank (99.2 to 99.8 %).",
        source=MUKHERJEE,
        verdict=holds(*(rank > 0.99 for rank in ranks)),
        finding=f"{spread(ranks)} of the full rank (asked: over 99 %).",
        confounds="Rounding to bfloat16 alone makes full rank, and a shuffled update has it: weak evidence.",
    )


def overlap_uniform(figures: Figures) -> Claim:
    """Overlaps against uniform chance."""
    found = _rl_overlaps(figures)
    null = null_overlaps(figures, "grpo")
    return Claim(
        claim="Runs of other seeds, data and algorithms change the same weights far more often than chance.",
        source=MUKHERJEE,
        verdict=holds(*(o.lift[0] > 1 for o in found)),
        finding=(
            f"Against uniform chance, as published: {_lifts(found, 0)} times as often, in every "
            f"pair of RL runs. But a shuffled update reaches {_lifts(null, 0)}."
        ),
        confounds="Uniform chance ignores that small weights change in any run.",
    )


def overlap_magnitude(figures: Figures) -> Claim:
    """Overlaps against chance at the same magnitude."""
    found, null = _rl_overlaps(figures), null_overlaps(figures, "grpo")
    return Claim(
        claim="The same, beyond what tensor and magnitude explain.",
        source="asked here; not in the papers",
        verdict=above([o.lift[2] for o in found], [o.lift[2] for o in null]),
        finding=(
            f"Given each tensor's density at each exponent: {_lifts(found, 2)} times as often; a "
            f"shuffled update {_lifts(null, 2)}. The verdict asks whether every pair is above every null."
        ),
        confounds="Runs share the base, the task, and so the first gradient; rows and columns that are active in any run.",
    )


def _rl_overlaps(figures: Figures) -> list[Overlap]:
    found = [o for label in ON_POLICY for o in seed_overlaps(figures, label)]
    found += [o for label in ON_POLICY for o in data_overlaps(figures, label)]
    return [*found, *algorithm_overlaps(figures, "dpo", "grpo")]


def _lifts(found: Sequence[Overlap], chance: int) -> str:
    lifts = [overlap.lift[chance] for overlap in found]
    return f"{min(lifts):.2f} to {max(lifts):.2f}"


def same_model(figures: Figures) -> Claim:
    """The subnetwork alone gives the same weights."""
    near: dict[str, list[float]] = {"exact": [], "random": [], "magnitude": []}
    base, loose = [], []
    for label in ("dpo", "prime"):
        for mask, found in near.items():
            for run in figures.labelled(f"{label}-{mask}"):
                everything = figures.matched(run)["everything"]
                found.append(everything["full_and_sub"]["1e-05"])
                if mask == "exact":
                    base.append(everything["base_and_full"]["1e-05"])
                    loose.append(everything["base_and_full"]["0.0001"])
    controls = [*near["random"], *near["magnitude"], *base]
    return Claim(
        claim="Training only the subnetwork gives the same weights: 90.5 to 94 % within 1e-5, all within 1e-4.",
        source=MUKHERJEE,
        verdict=above(near["exact"], controls),
        finding=(
            f"Within 1e-5: {spread(near['exact'])} by the mask, {spread(near['random'])} by as many "
            f"weights by chance, {spread(near['magnitude'])} by as many of each magnitude, "
            f"{spread(base)} by doing nothing. Within 1e-4 doing nothing gives {spread(loose)}. The "
            "verdict asks whether the mask is above all controls."
        ),
        confounds="The mask was chosen by the very run it is compared with.",
    )


def same_score(figures: Figures) -> Claim:
    """The subnetwork alone gives the same score."""
    scores = figures.scores()
    gains: dict[str, list[float]] = {"full": [], "exact": [], "random": [], "magnitude": []}
    for label in ("dpo", "prime"):
        for kind, found in gains.items():
            runs = figures.labelled(label if kind == "full" else f"{label}-{kind}")
            found += [scores[run.name] - scores[BASE] for run in runs if run.split == 0]
    error = standard_error(figures)
    lost = [f - e for f, e in zip(gains["full"], gains["exact"], strict=True)]
    return Claim(
        claim="Training only the subnetwork reaches the score of full training, or a better one.",
        source=MUKHERJEE,
        verdict=holds(*(loss <= 2 * error for loss in lost)),
        finding=(
            f"Gains over the base: {points(gains['full'])} in full, {points(gains['exact'])} by the "
            f"mask; {points(gains['random'])} by as many weights by chance and "
            f"{points(gains['magnitude'])} by as many of each magnitude. A standard error is "
            f"{100 * error:.1f} points; the verdict allows two."
        ),
        confounds="Where the controls gain as much, the score says nothing about the subnetwork.",
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
