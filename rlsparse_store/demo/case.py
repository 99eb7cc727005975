"""Make the case: a base model, and the model that reinforcement learning makes of it.

Importing this module takes seconds, for torch and transformers.
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
    """Everything that decides what is made.

    The same settings give the same files on the same machine with the same libraries. Elsewhere
    arithmetic is rounded differently, and so the numbers differ a little.

    Attributes:
        shape: The shape of the model.
        pretraining: How the base is trained.
        grpo: How it is tuned.
        held_out: How many sums are kept out of training, to evaluate both models on.
        seed: Decides everything random.
    """

    shape: PolicyShape
    pretraining: PretrainingSettings
    grpo: GrpoSettings
    held_out: int = 2000
    seed: int = 0

    @classmethod
    def full(cls) -> Self:
        """The demonstration: about a minute on two cores, and a gain beyond doubt."""
        return cls(
            shape=PolicyShape(
                hidden_size=256, intermediate_size=512, layers=2, heads=4, initial_std=0.06
            ),
            pretraining=PretrainingSettings(steps=350, batch_size=128, learning_rate=1.5e-3),
            grpo=GrpoSettings(steps=80, prompts=32, samples=16, learning_rate=1e-6),
        )

    @classmethod
    def quick(cls) -> Self:
        """The same in seconds, for tests: too short to learn anything worth showing."""
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
    """What was made, and what tuning gained.

    Rewards are means over the held-out prompts, which are the same for both models, of the models
    as saved. Answers are greedy, so nothing in them is random: the standard errors are those of
    the choice of prompts.

    Attributes:
        base: Directory of the base model.
        tuned: Directory of the tuned model.
        reward_before: Mean reward of the base model.
        reward_before_se: Its standard error.
        reward_after: Mean reward of the tuned model.
        reward_after_se: Its standard error.
        reward_gain: Mean difference of the rewards for the same prompt.
        reward_gain_se: Its standard error.
        prompts: Held-out prompts.
        steps: Steps of GRPO.
        learning_rate: Learning rate of GRPO.
        parameters: Parameters of each model.
        seconds: Time it all took.
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


def make_case(out: Path, settings: DemoSettings, say: Callable[[str], None]) -> DemoCase:
    """Pretrain a base model, tune it by reinforcement learning, and evaluate both.

    Nothing is downloaded.

    Args:
        out: Where to write the directories ``base`` and ``tuned``.
        settings: What to make.
        say: Called with lines about the progress.

    Returns:
        What was made.
    """
    start = time.monotonic()
    train, held_out = split_sums(settings.held_out, settings.seed)
    with _quiet_transformers():
        parameters = _make_base(out / "base", train, settings, say)
        before = _evaluate(out / "base", held_out, say)
        _make_tuned(out / "base", out / "tuned", train, settings, say)
        after = _evaluate(out / "tuned", held_out, say)
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
    folder: Path, train: Sequence[Sum], settings: DemoSettings, say: Callable[[str], None]
) -> int:
    """Pretrain and save the base model.

    Returns:
        How many parameters it has.
    """
    policy = new_policy(settings.shape, settings.seed)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    texts = pretraining_texts(train)
    say(f"Pretraining a Llama of {parameters:,} parameters on {len(texts):,} texts of sums")
    pretrain(policy, texts, settings.pretraining, settings.seed + 1, say)
    save(policy, folder)
    return parameters


def _make_tuned(
    base: Path,
    folder: Path,
    train: Sequence[Sum],
    settings: DemoSettings,
    say: Callable[[str], None],
) -> None:
    """Tune and save the tuned model."""
    grpo = settings.grpo
    say(
        f"Tuning it by GRPO: {grpo.steps} steps of {grpo.prompts} x {grpo.samples} samples, "
        f"learning rate {grpo.learning_rate:g}"
    )
    # Tuning starts from what the file holds, so the base is exactly the one deltas are made from.
    policy = load(base)
    tune(policy, [problem.prompt for problem in train], grpo, settings.seed + 2, say)
    save(policy, folder)


def _evaluate(
    folder: Path, held_out: Sequence[Sum], say: Callable[[str], None]
) -> NDArray[np.float64]:
    """The reward of a saved model for its greedy answer to each of some prompts."""
    prompts = [problem.prompt for problem in held_out]
    answers = greedy_answers(load(folder), token_ids(prompts)).texts()
    rewards = np.array(list(map(reward, prompts, answers)))
    mean, error = _mean_and_error(rewards)
    say(
        f"The {folder.name} model, saved in bfloat16: {mean:.2%} of {len(prompts):,} held-out "
        f"sums right (greedy; standard error {error:.2%})"
    )
    return rewards


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep the progress bars and warnings of transformers out of the way for a while."""
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
