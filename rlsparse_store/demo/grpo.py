"""Group relative policy optimization (GRPO), as in arXiv:2402.03300, with outcome rewards.

Each step samples several answers to each of some prompts, and makes those more likely that did
better than the others to the same prompt. As is usual with rewards that are verified rather than
learned, there is no penalty for moving away from the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rlsparse_store.demo.policy import answer_log_probs, sample, token_ids
from rlsparse_store.demo.task import reward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import LlamaForCausalLM

    from rlsparse_store.demo.policy import Rollouts

__all__ = ["GrpoSettings", "advantages", "clipped_objective", "tune"]

_PROGRESS_LINES = 8

# Keeps advantages finite where all rewards of a group are the same.
_STD_FLOOR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoSettings:
    """How a policy is tuned.

    Attributes:
        steps: Rounds of sampling and learning.
        prompts: Prompts in each round.
        samples: Answers sampled for each prompt, its group.
        updates: Updates of the weights on the answers of a round. The first of them has ratios of
            one; only later ones can be clipped.
        learning_rate: The learning rate, constant.
        clip_range: How far from one the ratio of new to old probability counts.
        max_grad_norm: Gradients longer than this are scaled down to it.
        betas: Decay of the running averages of AdamW.
    """

    steps: int
    prompts: int
    samples: int
    learning_rate: float
    updates: int = 1
    clip_range: float = 0.2
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)


def advantages(rewards: Tensor) -> Tensor:
    """How much better each answer did than its group, in standard deviations of the group.

    Args:
        rewards: Rewards, of shape (prompts, samples).

    Returns:
        Advantages, of the same shape. They are zero where all rewards of a group are equal.
    """
    mean = rewards.mean(dim=1, keepdim=True)
    std = rewards.std(dim=1, keepdim=True)
    return (rewards - mean) / (std + _STD_FLOOR)


def clipped_objective(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip_range: float
) -> Tensor:
    """What GRPO maximizes: the advantage, weighted by the ratio of new to old probability.

    A ratio outside the range counts only where it makes the objective worse, so that nothing is
    gained by leaving the range.

    Args:
        log_probs: Log-probabilities of the tokens now, of shape (answers, tokens).
        old_log_probs: Their log-probabilities when they were sampled.
        advantage: The advantage of each token, or of each answer: of shape (answers, 1).
        clip_range: The range is this far to each side of one.

    Returns:
        The mean over all tokens.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.minimum(ratio * advantage, clipped * advantage).mean()


def tune(
    policy: LlamaForCausalLM,
    prompts: Sequence[str],
    settings: GrpoSettings,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Tune a policy, in place.

    Args:
        policy: The policy. Its weights are the master weights: they should be in 32 bits, because
            most updates are too small to show in 16.
        prompts: What to ask.
        settings: How to tune.
        seed: Decides the prompts of each step, and the answers.
        say: Called with lines about the progress.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=0
    )
    every = max(1, settings.steps // _PROGRESS_LINES)
    recent: list[float] = []
    for step in range(1, settings.steps + 1):
        drawn = torch.randperm(len(prompts), generator=generator)[: settings.prompts]
        asked = [prompts[index] for index in drawn.tolist()]
        rollouts = sample(policy, token_ids(asked), settings.samples, generator)
        repeated = [prompt for prompt in asked for _ in range(settings.samples)]
        rewards = torch.tensor(list(map(reward, repeated, rollouts.texts())))
        advantage = advantages(rewards.view(-1, settings.samples)).view(-1, 1)
        for _ in range(settings.updates):
            _update(policy, optimizer, token_ids(repeated), rollouts, advantage, settings)
        recent.append(rewards.mean().item())
        if step % every == 0:
            mean = sum(recent) / len(recent)
            say(f"  GRPO step {step} of {settings.steps}: mean reward of samples {mean:.3f}")
            recent.clear()


def _update(
    policy: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    prompts: Tensor,
    rollouts: Rollouts,
    advantage: Tensor,
    settings: GrpoSettings,
) -> None:
    """Take one step up the objective."""
    log_probs = answer_log_probs(policy, prompts, rollouts.answers)
    objective = clipped_objective(log_probs, rollouts.log_probs, advantage, settings.clip_range)
    optimizer.zero_grad()
    (-objective).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
    optimizer.step()
