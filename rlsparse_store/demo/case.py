"""The case: a base model, and the same model tuned by reinforcement learning.

Importing this module takes seconds, since it imports torch and transformers.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from transformers.utils import logging as transformers_logging

from rlsparse_store.demo.grpo import GrpoSettings, tune
from rlsparse_store.demo.policy import (
    PolicyShape,
    PretrainingSettings,
    greedy_answers,
    load,
    new_policy,
    pretrain,
    save,
    token_ids,
)
from rlsparse_store.demo.task import Sum, pretraining_texts, reward, split_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["DemoCase", "DemoSettings", "make_case"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Settings of the demonstration.

    The same settings give the same files on the same machine with the same libraries. Rounding on
    other machines changes the results slightly.

    Attributes:
        shape: Shape of the model.
        pretraining: Settings of pretraining.
        grpo: Settings of tuning.
        held_out: Number of sums held out of training, for evaluation.
        seed: Seed of all random numbers.
    """

    shape: PolicyShape
    pretraining: PretrainingSettings
    grpo: GrpoSettings
    held_out: int = 2000
    seed: int = 0

    @classmethod
    def full(cls) -> Self:
        """The full demonstration: about a minute on two cores, with a significant gain."""
        return cls(
            shape=PolicyShape(
                hidden_size=256, intermediate_size=512, layers=2, heads=4, initial_std=0.06
            ),
            pretraining=PretrainingSettings(steps=350, batch_size=128, learning_rate=1.5e-3),
            grpo=GrpoSettings(steps=80, prompts=32, samples=16, learning_rate=1e-6),
        )

    @classmethod
    def quick(cls) -> Self:
        """A run of seconds, for tests. It is too short to learn much."""
        return cls(
            shape=PolicyShape(
                hidden_size=64, intermediate_size=128, layers=2, heads=4, initial_std=0.06
            ),
            pretraining=PretrainingSettings(steps=150, batch_size=128, learning_rate=3e-3),
            grpo=GrpoSettings(steps=6, prompts=16, samples=16, learning_rate=1e-6, updates=2),
            held_out=500,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCase:
    """The models and their rewards.

    Rewards are means over the held-out prompts, computed from the saved models. Answers are
    greedy, so the standard errors reflect the sample of prompts only.

    Attributes:
        base: Folder of the base model.
        tuned: Folder of the tuned model.
        reward_before: Mean reward of the base model.
        reward_before_se: Its standard error.
        reward_after: Mean reward of the tuned model.
        reward_after_se: Its standard error.
        reward_gain: Mean paired difference of the rewards.
        reward_gain_se: Its standard error.
        prompts: Number of held-out prompts.
        steps: Steps of GRPO.
        learning_rate: Learning rate of GRPO.
        parameters: Parameters of each model.
        seconds: Wall time in seconds.
    """

    base: Path
    tuned: Path
    reward_before: float
    reward_before_se: float
    reward_after: float
    reward_after_se: float
    reward_gain: float
    reward_gain_se: float
    prompts: int
    steps: int
    learning_rate: float
    parameters: int
    seconds: float


def make_case(out: Path, settings: DemoSettings, log: Callable[[str], None]) -> DemoCase:
    """Pretrain a base model, tune it by reinforcement learning, and evaluate both.

    Needs no network.

    Args:
        out: Folder to write ``base`` and ``tuned`` to.
        settings: The settings.
        log: Called with each line of progress.

    Returns:
        The models and their rewards.
    """
    start = time.monotonic()
    train, held_out = split_sums(settings.held_out, settings.seed)
    with _quiet_transformers():
        parameters = _make_base(out / "base", train, settings, log)
        before = _evaluate(out / "base", held_out, log)
        _make_tuned(out / "base", out / "tuned", train, settings, log)
        after = _evaluate(out / "tuned", held_out, log)
    reward_before, reward_before_se = _mean_and_error(before)
    reward_after, reward_after_se = _mean_and_error(after)
    reward_gain, reward_gain_se = _mean_and_error(after - before)
    return DemoCase(
        base=out / "base",
        tuned=out / "tuned",
        reward_before=reward_before,
        reward_before_se=reward_before_se,
        reward_after=reward_after,
        reward_after_se=reward_after_se,
        reward_gain=reward_gain,
        reward_gain_se=reward_gain_se,
        prompts=len(held_out),
        steps=settings.grpo.steps,
        learning_rate=settings.grpo.learning_rate,
        parameters=parameters,
        seconds=time.monotonic() - start,
    )


def _make_base(
    folder: Path, train: Sequence[Sum], settings: DemoSettings, log: Callable[[str], None]
) -> int:
    """Pretrain and save the base model.

    Returns:
        Its number of parameters.
    """
    policy = new_policy(settings.shape, settings.seed)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    texts = pretraining_texts(train)
    log(f"Pretraining a Llama of {parameters:,} parameters on {len(texts):,} texts of sums")
    pretrain(policy, texts, settings.pretraining, settings.seed + 1, log)
    save(policy, folder)
    return parameters


def _make_tuned(
    base: Path,
    folder: Path,
    train: Sequence[Sum],
    settings: DemoSettings,
    log: Callable[[str], None],
) -> None:
    """Tune and save the tuned model."""
    grpo = settings.grpo
    log(
        f"Tuning it by GRPO: {grpo.steps} steps of {grpo.prompts} x {grpo.samples} samples, "
        f"learning rate {grpo.learning_rate:g}"
    )
    # Tuning starts from the saved base: the one that deltas are encoded against.
    policy = load(base)
    tune(policy, [problem.prompt for problem in train], grpo, settings.seed + 2, log)
    save(policy, folder)


def _evaluate(
    folder: Path, held_out: Sequence[Sum], log: Callable[[str], None]
) -> NDArray[np.float64]:
    """Rewards of a saved model's greedy answers to held-out sums."""
    prompts = [problem.prompt for problem in held_out]
    answers = greedy_answers(load(folder), token_ids(prompts)).texts()
    rewards = np.array(list(map(reward, prompts, answers)))
    mean, error = _mean_and_error(rewards)
    log(
        f"The {folder.name} model, saved in bfloat16: {mean:.2%} of {len(prompts):,} held-out "
        f"sums right (greedy; standard error {error:.2%})"
    )
    return rewards


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
