"""The loss of each algorithm.

Each algorithm is a function of a :class:`Setting`. It returns a function without arguments that
gives the loss of the next update.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from problem import shifted
from rlsparse_store.demo.grpo import advantages, clipped_objective
from rlsparse_store.demo.policy import Rollouts, answer_log_probs, sample, token_ids
from rlsparse_store.demo.task import Sum, reward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import LlamaForCausalLM

    from plan import Plan, Run

__all__ = ["LOSSES", "Pairs", "Setting", "generalized_advantages", "preference_pairs"]

ROUND: Final = 2
"""Updates per round of answers. Ratios differ from 1, and can be clipped, from the second on."""

DPO_BETA: Final = 0.1
SIMPO_BETA: Final = 2.0
SIMPO_MARGIN: Final = 1.0

CRITIC_RATE: Final = 1e-4
GAE_DECAY: Final = 0.95

PRIME_BETA: Final = 0.05

POOL: Final = 512
"""Prompts that the base answers in advance, for offline algorithms."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Inputs of an algorithm.

    Attributes:
        policy: The policy to train.
        base: The base, frozen.
        sums: Sums to train on.
        run: The run.
        plan: The plan.
        generator: Random generator.
    """

    policy: LlamaForCausalLM
    base: LlamaForCausalLM
    sums: Sequence[Sum]
    run: Run
    plan: Plan
    generator: torch.Generator

    def draw(self, count: int) -> list[Sum]:
        """Random sums, without replacement."""
        indices = torch.randperm(len(self.sums), generator=self.generator)[:count]
        return [self.sums[i] for i in indices.tolist()]

    def rows(self, total: int, count: int) -> Tensor:
        """Random row indices, with replacement."""
        return torch.randint(total, (count,), generator=self.generator)


@dataclass(frozen=True, slots=True)
class Round:
    """Sampled answers with their prompts and rewards.

    Attributes:
        prompts: Token ids of the prompts, one per answer.
        rollouts: The answers.
        rewards: 1 for correct answers, else 0, of shape (prompts, samples).
    """

    prompts: Tensor
    rollouts: Rollouts
    rewards: Tensor


def _sample_round(setting: Setting, policy: LlamaForCausalLM, problems: Sequence[Sum]) -> Round:
    samples = setting.plan.samples
    prompts = [problem.prompt for problem in problems]
    rollouts = sample(policy, token_ids(prompts), samples, setting.generator)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    rewards = torch.tensor(list(map(reward, repeated, rollouts.texts())))
    return Round(token_ids(repeated), rollouts, rewards.view(-1, samples))


# --- Supervised -----------------------------------------------------------------------------------


def _supervised(setting: Setting, prompts: Tensor, answers: Tensor) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        rows = setting.rows(len(prompts), setting.plan.answers)
        return -answer_log_probs(setting.policy, prompts[rows], answers[rows]).mean()

    return loss


def _sft(setting: Setting) -> Callable[[], Tensor]:
    """Supervised fine-tuning on correct answers."""
    prompts = token_ids([problem.prompt for problem in setting.sums])
    answers = token_ids([problem.answer for problem in setting.sums])
    return _supervised(setting, prompts, answers)


def _sft_foreign(setting: Setting) -> Callable[[], Tensor]:
    """Supervised fine-tuning on answers that the base never gives."""
    prompts = token_ids([problem.prompt for problem in setting.sums])
    return _supervised(setting, prompts, token_ids(list(map(shifted, setting.sums))))


def _rft(setting: Setting) -> Callable[[], Tensor]:
    """Supervised fine-tuning on the base's correct answers (rejection sampling)."""
    pool = _sample_round(setting, setting.base, setting.draw(POOL))
    right = pool.rewards.flatten() > 0
    return _supervised(setting, pool.prompts[right], pool.rollouts.answers[right])


# --- Preferences ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pairs:
    """Preference pairs.

    Attributes:
        prompts: Token ids of the prompts.
        right: Token ids of a correct answer to each prompt.
        wrong: Token ids of a wrong answer to each prompt.
    """

    prompts: Tensor
    right: Tensor
    wrong: Tensor


def preference_pairs(setting: Setting) -> Pairs:
    """A correct and a wrong answer of the base, for each prompt with both."""
    pool = _sample_round(setting, setting.base, setting.draw(POOL))
    samples = setting.plan.samples
    both = (pool.rewards.max(1).values > pool.rewards.min(1).values).nonzero()[:, 0]
    right = both * samples + pool.rewards[both].argmax(1)
    wrong = both * samples + pool.rewards[both].argmin(1)
    answers = pool.rollouts.answers
    return Pairs(pool.prompts[right], answers[right], answers[wrong])


def _preference_loss(
    setting: Setting, pairs: Pairs, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[], Tensor]:
    """A loss over random pairs, from the log-probabilities of both answers and the row indices."""

    def loss() -> Tensor:
        rows = setting.rows(len(pairs.prompts), setting.plan.answers // 2)
        prompts = pairs.prompts[rows].repeat(2, 1)
        answers = torch.cat([pairs.right[rows], pairs.wrong[rows]])
        right, wrong = answer_log_probs(setting.policy, prompts, answers).chunk(2)
        return loss_of(right, wrong, rows)

    return loss


def _dpo(setting: Setting) -> Callable[[], Tensor]:
    """Direct preference optimization, arXiv:2305.18290, equation 7."""
    pairs = preference_pairs(setting)
    with torch.no_grad():
        right = answer_log_probs(setting.base, pairs.prompts, pairs.right).sum(1)
        wrong = answer_log_probs(setting.base, pairs.prompts, pairs.wrong).sum(1)
    base_margin = right - wrong

    def loss_of(right: Tensor, wrong: Tensor, rows: Tensor) -> Tensor:
        margin = right.sum(1) - wrong.sum(1) - base_margin[rows]
        return -logsigmoid(DPO_BETA * margin).mean()

    return _preference_loss(setting, pairs, loss_of)


def _simpo(setting: Setting) -> Callable[[], Tensor]:
    """Simple preference optimization, arXiv:2405.14734, equation 6."""

    def loss_of(right: Tensor, wrong: Tensor, rows: Tensor) -> Tensor:
        del rows
        margin = SIMPO_BETA * (right.mean(1) - wrong.mean(1)) - SIMPO_MARGIN
        return -logsigmoid(margin).mean()

    return _preference_loss(setting, preference_pairs(setting), loss_of)


# --- On policy ------------------------------------------------------------------------------------


def _policy_gradient(setting: Setting, credit: Callable[[Round], Tensor]) -> Callable[[], Tensor]:
    """The clipped objective, with new answers every :data:`ROUND` updates.

    Args:
        setting: The setting.
        credit: Gives the advantages of a round, of shape (answers, tokens) or (answers, 1).
    """
    sampler = setting.base if setting.run.stale else setting.policy
    pending: list[tuple[Round, Tensor]] = []

    def loss() -> Tensor:
        if not pending:
            problems = setting.draw(setting.plan.answers // setting.plan.samples)
            answers = _sample_round(setting, sampler, problems)
            pending.extend([(answers, credit(answers))] * ROUND)
        answers, advantage = pending.pop()
        log_probs = answer_log_probs(setting.policy, answers.prompts, answers.rollouts.answers)
        old = answers.rollouts.log_probs
        objective = clipped_objective(log_probs, old, advantage, setting.run.clip)
        return -objective + setting.run.kl * _kl_penalty(setting, answers, log_probs)

    return loss


def _kl_penalty(setting: Setting, answers: Round, log_probs: Tensor) -> Tensor:
    """GRPO's estimate of the KL divergence from the base, arXiv:2402.03300, equation 4."""
    if not setting.run.kl:
        return torch.zeros(())
    with torch.no_grad():
        base = answer_log_probs(setting.base, answers.prompts, answers.rollouts.answers)
    ratio = base - log_probs
    return (ratio.exp() - ratio - 1).mean()


def _grpo(setting: Setting) -> Callable[[], Tensor]:
    """Group relative policy optimization, arXiv:2402.03300."""
    return _policy_gradient(setting, lambda sampled: advantages(sampled.rewards).view(-1, 1))


class _Critic(torch.nn.Module):
    """Predicts rewards with a copy of the base, trained together with the policy."""

    def __init__(self, base: LlamaForCausalLM) -> None:
        super().__init__()
        self.body = copy.deepcopy(base.model).requires_grad_(requires_grad=True)
        self.head = torch.nn.Linear(base.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=CRITIC_RATE, weight_decay=0)

    def values(self, sampled: Round) -> Tensor:
        """The expected reward before each token of the answers."""
        answers = sampled.rollouts.answers
        tokens = torch.cat([sampled.prompts, answers], dim=1)[:, :-1]
        states = self.body(input_ids=tokens, use_cache=False).last_hidden_state
        values: Tensor = self.head(states[:, -answers.shape[1] :])[:, :, 0]
        return values

    def learn(self, sampled: Round, returns: Tensor) -> None:
        """Take one optimizer step toward the returns."""
        loss = (self.values(sampled) - returns).square().mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def _ppo(setting: Setting) -> Callable[[], Tensor]:
    """Proximal policy optimization with a critic, arXiv:1707.06347, with generalized advantages."""
    critic = _Critic(setting.base)

    def credit(sampled: Round) -> Tensor:
        with torch.no_grad():
            values = critic.values(sampled)
        advantage = generalized_advantages(values, sampled.rewards.flatten(), GAE_DECAY)
        for _ in range(ROUND):
            critic.learn(sampled, advantage + values)
        return (advantage - advantage.mean()) / (advantage.std() + 1e-4)

    return _policy_gradient(setting, credit)


def generalized_advantages(values: Tensor, rewards: Tensor, decay: float) -> Tensor:
    """Generalized advantage estimation, arXiv:1506.02438, undiscounted, with a final reward.

    Args:
        values: Predicted rewards before each token, of shape (answers, tokens).
        rewards: Final rewards, of shape (answers,).
        decay: The decay λ.
    """
    errors = torch.cat([values[:, 1:], rewards[:, None]], dim=1) - values
    advantage = torch.zeros_like(values)
    running = torch.zeros_like(rewards)
    for token in reversed(range(values.shape[1])):
        running = errors[:, token] + decay * running
        advantage[:, token] = running
    return advantage


def _prime(setting: Setting) -> Callable[[], Tensor]:
    """Process reinforcement through implicit rewards, arXiv:2502.01456.

    A copy of the base learns to recognize correct answers. Its log-ratio to the base rewards each
    token, in addition to the reward of the answer.
    """
    judge = copy.deepcopy(setting.base).requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=setting.plan.learning_rate, weight_decay=0)

    def credit(sampled: Round) -> Tensor:
        answers = sampled.rollouts.answers
        with torch.no_grad():
            base = answer_log_probs(setting.base, sampled.prompts, answers)
        implied = PRIME_BETA * (answer_log_probs(judge, sampled.prompts, answers) - base)
        loss = binary_cross_entropy_with_logits(implied.sum(1), sampled.rewards.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        returns = implied.detach().flip(1).cumsum(1).flip(1)
        return _leave_one_out(returns, setting) + _leave_one_out(
            sampled.rewards.view(-1, 1), setting
        )

    return _policy_gradient(setting, credit)


def _leave_one_out(rewards: Tensor, setting: Setting) -> Tensor:
    """Rewards minus the mean of the other answers to the same prompt (RLOO).

    Args:
        rewards: Of shape (answers, tokens).
        setting: The setting.
    """
    samples = setting.plan.samples
    groups = rewards.view(-1, samples, rewards.shape[1])
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).view_as(rewards)


LOSSES: Final[dict[str, Callable[[Setting], Callable[[], Tensor]]]] = {
    "sft": _sft,
    "sft_foreign": _sft_foreign,
    "rft": _rft,
    "dpo": _dpo,
    "simpo": _simpo,
    "ppo": _ppo,
    "grpo": _grpo,
    "prime": _prime,
}
