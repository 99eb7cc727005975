"""Claims about the sparsity of updates and its causes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from claims import (
    AGREES,
    CANNOT_TELL,
    MUKHERJEE,
    PATH,
    RAZOR,
    TINY,
    Claim,
    above,
    holds,
    points,
    standard_error,
    unchanged,
)
from plan import BASE, BASE_FLOAT32, FLOAT32, ON_POLICY
from tables import share, spread

if TYPE_CHECKING:
    from figures import Figures

__all__ = ["SPARSITY_CLAIMS"]

NO_DIFFERENCE: Final = 0.01
"""Difference of shares that the papers read as none."""

NO_EFFECT: Final = 0.99
"""Jaccard overlap from which an ablation changed nothing."""


def sparse(figures: Figures) -> Claim:
    """RL is sparse, SFT is dense."""
    rl = [figures.within(n) for label in (*ON_POLICY, "dpo", "simpo") for n in figures.names(label)]
    sft = [figures.within(name) for name in figures.names("sft10")]
    return Claim(
        claim="RL leaves 68.5 to 96 % of the weights within 1e-5, SFT 6 to 15 %.",
        source=MUKHERJEE,
        verdict=above(rl, sft),
        finding=(
            f"RL and preferences {spread(rl)}; SFT at ten times their learning rate {spread(sft)}. "
            "The verdict tests the order only, since the shares follow from the chosen rates."
        ),
        confounds=f"The learning rate: see the next claim. {TINY}",
    )


def by_nature(figures: Figures) -> Claim:
    """Sparsity is inherent to RL."""
    rl, rl10 = unchanged(figures, *ON_POLICY), unchanged(figures, "grpo10")
    sft, sft10 = unchanged(figures, "sft"), unchanged(figures, "sft10")
    algorithm = [r - s for r in rl for s in sft]
    rate = [s - t for s, t in zip(sft, sft10, strict=True)]
    rate += [r - t for r in unchanged(figures, "grpo") for t in rl10]
    return Claim(
        claim="Density is inherent to SFT, and sparsity to RL.",
        source=f"{MUKHERJEE} (by comparing published checkpoints)",
        verdict=above(algorithm, rate),
        finding=(
            f"At one learning rate on-policy RL leaves {spread(rl)} and SFT {spread(sft)}; at ten "
            f"times that rate GRPO leaves {spread(rl10)} and SFT {spread(sft10)}. The verdict tests "
            "whether the effect of the algorithm is larger than that of the rate."
        ),
        confounds="Published SFT runs differ from RL runs in rate, length and data at once.",
    )


def on_policy(figures: Figures) -> Claim:
    """On-policy RL is sparser than SFT at the same learning rate."""
    rl, sft = unchanged(figures, *ON_POLICY), unchanged(figures, "sft", "rft")
    return Claim(
        claim="At equal learning rate and number of updates, on-policy RL is sparser than SFT.",
        source=f"implied by {MUKHERJEE}",
        verdict=above(rl, sft),
        finding=(
            f"PPO, GRPO and PRIME {spread(rl)}; SFT and RFT {spread(sft)}. They score "
            f"{_scores(figures, *ON_POLICY)} and {_scores(figures, 'sft', 'rft')}."
        ),
        confounds=(
            "Adam normalizes step sizes, and noisier gradients cancel more. Equal numbers of "
            "updates do not teach equally much; the runs are not matched on what they learned."
        ),
    )


def _scores(figures: Figures, *labels: str) -> str:
    """Scores of runs on the first half of the data."""
    scores = figures.scores()
    runs = [run for label in labels for run in figures.labelled(label) if run.split == 0]
    return spread(scores[run.name] for run in runs)


def preferences(figures: Figures) -> Claim:
    """Offline preferences are sparser than SFT at the same learning rate."""
    dpo, sft = unchanged(figures, "dpo", "simpo"), unchanged(figures, "sft", "rft")
    return Claim(
        claim="At equal learning rate and number of updates, DPO and SimPO are sparser than SFT.",
        source=f"implied by {MUKHERJEE}",
        verdict=above(dpo, sft),
        finding=f"DPO and SimPO {spread(dpo)}; SFT and RFT {spread(sft)}.",
        confounds=f"Here, pairs are sampled from the base; in published runs, they often are not. {TINY}",
    )


def in_distribution(figures: Figures) -> Claim:
    """The source of the answers is the reason for sparsity."""
    own, foreign = unchanged(figures, "rft"), unchanged(figures, "sft-foreign")
    data = [a - b for a, b in zip(own, foreign, strict=True)]
    slow, fast = unchanged(figures, "sft"), unchanged(figures, "sft10")
    rate = [a - b for a, b in zip(slow, fast, strict=True)]
    return Claim(
        claim="Training on the model's own answers is the primary reason for sparsity.",
        source=f"{MUKHERJEE}; Balashov's withdrawn preprint says its effect is limited",
        verdict=above(data, rate),
        finding=(
            f"SFT on the base's own answers leaves {spread(own)}, on answers it never gives "
            f"{spread(foreign)}: {100 * min(data):.1f} to {100 * max(data):.1f} points. Ten times "
            f"the learning rate costs {100 * min(rate):.1f} to {100 * max(rate):.1f} points."
        ),
        confounds="One foreign notation, and equally long runs; longer runs may differ more.",
    )


def stale(figures: Figures) -> Claim:
    """Being on policy matters little."""
    verdict, finding = _ablation(figures, "stale")
    return Claim(
        claim="Being on policy has a limited effect on sparsity.",
        source="Balashov, arXiv 2507.17107, withdrawn by its author",
        verdict=verdict,
        finding=f"GRPO on answers of the base only: {finding[0].lower()}{finding[1:]}",
        confounds=(
            "The base masters half of the task, so that its own answers suffice. With answers of the "
            "base, clipping is relative to the base and keeps the policy near it."
        ),
    )


def penalty(figures: Figures) -> Claim:
    """A KL penalty does not matter."""
    verdict, finding = _ablation(figures, "kl")
    return Claim(
        claim="A KL penalty does not matter for sparsity (69.8 % with, 68.8 % without).",
        source=MUKHERJEE,
        verdict=verdict,
        finding=finding,
        confounds="Its pull is weak near the base; a larger weight, or longer runs, may differ.",
    )


def clipping(figures: Figures) -> Claim:
    """Clipping does not matter."""
    verdict, finding = _ablation(figures, "unclipped")
    return Claim(
        claim="Clipping does not matter for sparsity.",
        source=MUKHERJEE,
        verdict=verdict,
        finding=finding,
        confounds="Two updates on each batch of answers; more would clip more.",
    )


def _ablation(figures: Figures, suffix: str) -> tuple[str, str]:
    """The verdict and finding on whether an ablation of GRPO is as sparse as GRPO.

    Ablations that change nearly the same words have no effect, and do not count.
    """
    conditions, findings = [], []
    for label, rate in (("grpo", "the usual rate"), ("grpo10", "ten times that rate")):
        plain, other = unchanged(figures, label), unchanged(figures, f"{label}-{suffix}")
        difference = max(abs(a - b) for a, b in zip(plain, other, strict=True))
        jaccard = min(
            figures.overlaps([f"{label}-s{seed}-d0", f"{label}-{suffix}-s{seed}-d0"])[0].jaccard
            for seed in range(figures.plan.seeds)
        )
        if jaccard < NO_EFFECT:
            conditions.append(difference <= NO_DIFFERENCE)
        findings.append(
            f"at {rate} {spread(other)} against {spread(plain)}, for the same seed at most "
            f"{100 * difference:.2f} points apart, with a Jaccard overlap of {share(jaccard)}"
        )
    finding = f"{'; '.join(findings)}. Only ablations with an overlap below 99 % count."
    return (holds(*conditions) if conditions else CANNOT_TELL), finding[0].upper() + finding[1:]


def in_float32(figures: Figures) -> Claim:
    """Sparsity is an effect of the stored dtype."""
    wide = [figures.unchanged(name + FLOAT32) for name in _stored_twice(figures)]
    return Claim(
        claim="The same model stored in float32 is not sparse.",
        source=RAZOR,
        verdict=holds(max(wide) < 0.05),
        finding=(
            f"GRPO: {spread(wide)} unchanged in float32 (criterion: below 5 %), "
            f"{spread(unchanged(figures, 'grpo'))} in bfloat16."
        ),
        confounds="None known: the same model is stored twice.",
    )


def scored_in_float32(figures: Figures) -> Claim:
    """Rounding does not change the score."""
    right, wide = figures.scores(), figures.scores(BASE_FLOAT32)
    lost = [wide[name + FLOAT32] - right[name] for name in _stored_twice(figures)]
    kept = [right[name] - right[BASE] for name in _stored_twice(figures)]
    return Claim(
        claim="Rounding to bfloat16 does not change the score.",
        source=RAZOR,
        verdict=holds(*(abs(loss) <= 2 * standard_error(figures) for loss in lost)),
        finding=(
            f"GRPO stored in bfloat16 scores {points(lost)} below the same model in float32; its "
            f"gain over the base is {points(kept)}. The verdict allows two standard errors."
        ),
        confounds="Runs this short move most weights by less than half a step of bfloat16; longer runs lose less.",
    )


def without_masters(figures: Figures) -> Claim:
    """Training without float32 masters loses small updates."""
    scores = figures.scores()
    names = figures.names("grpo-pure")
    masters = _stored_twice(figures)
    gains = [scores[name] - scores[BASE] for name in names]
    return Claim(
        claim="Training in bfloat16 without float32 masters loses small updates, and the gain in score.",
        source="reported by trainers of RL stacks",
        verdict=holds(
            above(unchanged(figures, "grpo-pure"), unchanged(figures, "grpo")) == AGREES,
            above([scores[n] for n in masters], [scores[n] for n in names]) == AGREES,
        ),
        finding=(
            f"{spread(unchanged(figures, 'grpo-pure'))} unchanged, gains of {points(gains)}; with "
            f"masters {spread(unchanged(figures, 'grpo'))}."
        ),
        confounds="Stochastic rounding, which some trainers use, is not tested.",
    )


def _stored_twice(figures: Figures) -> list[str]:
    return [run.name for run in figures.labelled("grpo") if run.split == 0]


def tolerance(figures: Figures) -> Claim:
    """A tolerance of 1e-5 overstates sparsity."""
    runs = [name for label in (*ON_POLICY, "dpo", "simpo") for name in figures.names(label)]
    gaps = [figures.within(name) - figures.unchanged(name) for name in runs]
    return Claim(
        claim="Counting weights within 1e-5 as unchanged makes updates look much sparser (4 instead of 28 % changed).",
        source=f"{MUKHERJEE}, their table of tolerances",
        verdict=AGREES if min(gaps) > 0.05 else CANNOT_TELL,
        finding=(
            f"Here by {100 * min(gaps):.2f} to {100 * max(gaps):.2f} points (criterion: over 5). A step "
            "of bfloat16 is below 1e-5 only for weights below 0.002, which are few in this base."
        ),
        confounds="The weights of this base are several times larger than those of a large model.",
    )


def longer(figures: Figures) -> Claim:
    """Longer training is denser."""
    (run,) = figures.labelled("grpo-long")
    series = figures.series(run.name)
    densities = [step["density"] for step in series["steps"]]
    rising = all(a < b for a, b in pairwise(densities))
    moved = [step["moved"] / series["words"] for step in series["steps"][1:]]
    return Claim(
        claim="Longer training is denser, while consecutive checkpoints differ little (about 7 %).",
        source=f"{MUKHERJEE}; {PATH}",
        verdict=holds(rising, max(moved) < densities[-1]),
        finding=(
            f"From {share(1 - densities[0])} to {share(1 - densities[-1])} unchanged over the run; "
            f"consecutive checkpoints differ in {share(min(moved))} to {share(max(moved))} "
            "(criterion: the density rises at every checkpoint, and consecutive checkpoints differ "
            "less than the last one does from the base)."
        ),
        confounds="A constant learning rate; decay would flatten the curve. One seed.",
    )


SPARSITY_CLAIMS: Final = (
    sparse,
    by_nature,
    on_policy,
    preferences,
    in_distribution,
    stale,
    penalty,
    clipping,
    in_float32,
    scored_in_float32,
    without_masters,
    tolerance,
    longer,
)
