"""Group relative policy optimization (GRPO), as in arXiv:2402.03300, with outcome rewards.

Each step samples a group of answers per prompt and raises the probability of those with a reward
above the mean of their group. There is no KL penalty, as usual with verified rewards.
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

_PROGRESS_LINES = 4

# Keeps advantages finite where all rewards of a group are equal.
_STD_FLOOR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoSettings:
    """Settings of GRPO.

    Attributes:
        steps: Rounds of sampling and updates.
        prompts: Prompts per round.
        samples: Answers per prompt: the group size.
        updates: Optimizer steps per round. In the first one all ratios are 1, so that only later
            ones clip.
        learning_rate: Constant learning rate.
        clip_range: Ratios of new to old probability are clipped to 1 ± clip_range.
        max_grad_norm: Norm to which gradients are clipped.
        betas: Betas of AdamW.
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
    """Advantage of each answer: its reward, standardized within its group.

    Args:
        rewards: Rewards, of shape (prompts, samples).

    Returns:
        Advantages, of the same shape; zero where all rewards of a group are equal.
    """
    mean = rewards.mean(dim=1, keepdim=True)
    std = rewards.std(dim=1, keepdim=True)
    return (rewards - mean) / (std + _STD_FLOOR)


def clipped_objective(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip_range: float
) -> Tensor:
    """The objective of GRPO: advantages weighted by the clipped ratio of probabilities.

    The minimum of the clipped and the unclipped term removes the incentive to leave the range.

    Args:
        log_probs: Log-probabilities of the tokens under the policy, of shape (answers, tokens).
        old_log_probs: Log-probabilities at sampling time, of the same shape.
        advantage: Advantages, of shape (answers, tokens) or (answers, 1).
        clip_range: Ratios are clipped to 1 ± clip_range.

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
    log: Callable[[str], None],
) -> None:
    """Tune a policy in place.

    Args:
        policy: The policy, in float32. 16-bit weights would round most updates away.
        prompts: Prompts to sample from.
        settings: The settings.
        seed: Seed of prompts and answers.
        log: Called with each line of progress.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=0
    )
    every = max(1, settings.steps // _PROGRESS_LINES)
    recent: list[float] = []
    for step in range(1, settings.steps + 1):
        indices = torch.randperm(len(prompts), generator=generator)[: settings.prompts]
        batch = [prompts[index] for index in indices.tolist()]
        rollouts = sample(policy, token_ids(batch), settings.samples, generator)
        repeated = [prompt for prompt in batch for _ in range(settings.samples)]
        rewards = torch.tensor(list(map(reward, repeated, rollouts.texts())))
        advantage = advantages(rewards.view(-1, settings.samples)).view(-1, 1)
        for _ in range(settings.updates):
            _update(policy, optimizer, token_ids(repeated), rollouts, advantage, settings)
        recent.append(rewards.mean().item())
        if step % every == 0:
            mean = sum(recent) / len(recent)
            log(f"  GRPO step {step} of {settings.steps}: mean reward of samples {mean:.3f}")
            recent.clear()


def _update(
    policy: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    prompts: Tensor,
    rollouts: Rollouts,
    advantage: Tensor,
    settings: GrpoSettings,
) -> None:
    """Take one optimizer step."""
    log_probs = answer_log_probs(policy, prompts, rollouts.answers)
    objective = clipped_objective(log_probs, rollouts.log_probs, advantage, settings.clip_range)
    optimizer.zero_grad()
    (-objective).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
    optimizer.step()
