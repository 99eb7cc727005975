"""The runs: every algorithm over seeds and data, ablations, and controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from problem import SPLITS
from rlsparse_store.demo.policy import PolicyShape, PretrainingSettings

__all__ = [
    "ALGORITHMS",
    "BASE",
    "BASE_FLOAT32",
    "FLOAT32",
    "NULL",
    "ON_POLICY",
    "Plan",
    "Run",
    "full",
    "smoke",
]

ALGORITHMS: Final = ("sft10", "sft", "rft", "dpo", "simpo", "ppo", "grpo", "prime")
"""Labels with a run for every seed and split. ``sft10`` is ``sft`` at ten times the learning rate."""

ON_POLICY: Final = ("ppo", "grpo", "prime")

BASE: Final = "base"
BASE_FLOAT32: Final = "base-float32"

FLOAT32: Final = "-float32"
"""Suffix of runs that are stored in float32."""

NULL: Final = "-shuffled"
"""Suffix of runs with a shuffled update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One model to train from the base.

    Attributes:
        label: Name without seed and split.
        algorithm: The loss, a key of :data:`losses.LOSSES`.
        seed: Seed of batches and samples.
        split: Half of the data to train on.
        rate: Learning rate, relative to that of the plan.
        steps: Number of updates, relative to that of the plan.
        kl: Weight of the KL penalty.
        clip: Ratios of new to old probability are clipped to 1 ± clip.
        stale: Whether to sample answers from the base instead of the policy.
        pure: Whether to train bfloat16 weights, without float32 masters.
        float32: Whether to store the model in float32 too.
        checkpoints: Number of stored checkpoints, a divisor of the number of updates.
        mask: Kind of mask to train with: ``exact``, ``random`` or ``magnitude``.
        masked_by: Name of the run that the mask comes from.
    """

    label: str
    algorithm: str
    seed: int
    split: int = 0
    rate: float = 1.0
    steps: float = 1.0
    kl: float = 0.0
    clip: float = 0.2
    stale: bool = False
    pure: bool = False
    float32: bool = False
    checkpoints: int = 0
    mask: str = ""
    masked_by: str = ""

    @property
    def name(self) -> str:
        """Name of its delta."""
        return f"{self.label}-s{self.seed}-d{self.split}"

    def checkpoint(self, number: int) -> str:
        """Name of the delta of a checkpoint, counted from 1."""
        return f"{self.name}/checkpoint-{number:02d}" if self.checkpoints else self.name

    @property
    def last(self) -> str:
        """Name of the delta that is stored last."""
        return self.name + FLOAT32 if self.float32 else self.checkpoint(self.checkpoints)

    @property
    def mask_file(self) -> str:
        """Path of its mask."""
        return f"masks/{self.masked_by}-{self.mask}.safetensors"

    @property
    def mask_command(self) -> str:
        """Command that writes the mask."""
        control = "" if self.mask == "exact" else f" --control {self.mask}"
        return f"rlsparse mask {self.masked_by} --base {BASE}{control} -o {self.mask_file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of all runs.

    Attributes:
        shape: Shape of the model.
        pretraining: Settings of pretraining.
        updates: Optimizer steps per run.
        answers: Answers per batch.
        samples: Sampled answers per prompt.
        learning_rate: Learning rate.
        seeds: Number of seeds.
    """

    shape: PolicyShape
    pretraining: PretrainingSettings
    updates: int
    answers: int = 128
    samples: int = 8
    learning_rate: float = 1e-6
    seeds: int = 3

    def first(self) -> list[Run]:
        """Runs that need the base only."""
        runs = [run for seed in range(self.seeds) for run in _matrix(seed)]
        runs += [run for seed in range(self.seeds) for run in _ablations(seed)]
        long = Run(label="grpo-long", algorithm="grpo", seed=0, steps=4, checkpoints=16)
        return [long, *runs]

    def second(self) -> list[Run]:
        """Runs with a mask that comes from a run of :meth:`first`."""
        return [
            replace(run, label=f"{run.label}-{mask}", mask=mask, masked_by=run.name, float32=False)
            for run in self.first()
            if run.label in {"dpo", "prime"} and run.split == 0
            for mask in ("exact", "random", "magnitude")
        ]


def _matrix(seed: int) -> list[Run]:
    runs = []
    for split in range(SPLITS):
        for label in ALGORITHMS:
            algorithm, rate = ("sft", 10.0) if label == "sft10" else (label, 1.0)
            stored = split == 0 and label in {"sft10", "sft", "grpo"}
            run = Run(label=label, algorithm=algorithm, seed=seed, split=split, rate=rate)
            runs.append(replace(run, float32=stored))
    return runs


def _ablations(seed: int) -> list[Run]:
    runs = [Run(label="sft-foreign", algorithm="sft_foreign", seed=seed)]
    for label, rate in (("grpo", 1.0), ("grpo10", 10.0)):
        grpo = Run(label=label, algorithm="grpo", seed=seed, rate=rate)
        runs += [
            replace(grpo, label=f"{label}-kl", kl=0.04),
            replace(grpo, label=f"{label}-unclipped", clip=float("inf")),
            replace(grpo, label=f"{label}-stale", stale=True),
        ]
    grpo10 = Run(label="grpo10", algorithm="grpo", seed=seed, rate=10.0)
    return [*runs, grpo10, Run(label="grpo-pure", algorithm="grpo", seed=seed, pure=True)]


def full() -> Plan:
    """The plan of the published report."""
    return Plan(
        shape=PolicyShape(
            hidden_size=128, intermediate_size=256, layers=4, heads=4, initial_std=0.06
        ),
        pretraining=PretrainingSettings(steps=600, batch_size=128, learning_rate=2e-3),
        updates=100,
    )


def smoke() -> Plan:
    """A plan of about a minute, for tests. Its figures are meaningless."""
    return Plan(
        shape=PolicyShape(
            hidden_size=64, intermediate_size=128, layers=2, heads=4, initial_std=0.06
        ),
        pretraining=PretrainingSettings(steps=150, batch_size=128, learning_rate=3e-3),
        updates=8,
        answers=32,
        seeds=2,
    )
