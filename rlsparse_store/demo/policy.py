"""The policy: a small Llama. Pretraining, sampling, saving and loading.

Arithmetic is in float32; files are in bfloat16, as checkpoints of large models are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from rlsparse_store.demo.task import (
    ANSWER_LENGTH,
    PROMPT_LENGTH,
    SYMBOLS,
    decode,
    encode,
    new_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "PolicyShape",
    "PretrainingSettings",
    "Rollouts",
    "answer_log_probs",
    "greedy_answers",
    "load",
    "new_policy",
    "pretrain",
    "sample",
    "save",
    "token_ids",
]

_PROGRESS_LINES = 4

# transformers 5.24 renamed the cache of keys and values.
_IS_RENAMED = "cache" in signature(LlamaForCausalLM.forward).parameters
_CACHE: Final = "cache" if _IS_RENAMED else "past_key_values"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShape:
    """Shape of the model.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the feed-forward blocks.
        layers: Number of layers.
        heads: Number of attention heads.
        initial_std: Standard deviation of the initial weights.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    initial_std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingSettings:
    """Settings of pretraining.

    Attributes:
        steps: Optimizer steps.
        batch_size: Texts per step.
        learning_rate: Peak learning rate, after a linear warm-up and before a linear decay.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Norm to which gradients are clipped.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Answers sampled from a policy, grouped by prompt.

    Attributes:
        answers: Token ids, of shape (answers, tokens).
        log_probs: Log-probabilities of these tokens at sampling time, of the same shape.
    """

    answers: Tensor
    log_probs: Tensor

    def texts(self) -> list[str]:
        """The answers as text."""
        return [decode(row) for row in self.answers.tolist()]


def new_policy(shape: PolicyShape, seed: int) -> LlamaForCausalLM:
    """A policy with random weights."""
    config = LlamaConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=PROMPT_LENGTH + ANSWER_LENGTH,
        initializer_range=shape.initial_std,
        # All texts have the same length.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    # transformers initializes from the global generator. Restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = LlamaForCausalLM(config)
    policy.generation_config.max_new_tokens = ANSWER_LENGTH
    return policy


def token_ids(texts: Sequence[str]) -> Tensor:
    """Token ids of texts of the same length, of shape (texts, tokens)."""
    return torch.tensor([encode(text) for text in texts])


def pretrain(
    policy: LlamaForCausalLM,
    texts: Sequence[str],
    settings: PretrainingSettings,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Train a policy in place on prompts with answers.

    Args:
        policy: The policy.
        texts: Prompts with their answers, to draw batches from.
        settings: The settings.
        seed: Seed of the batches.
        log: Called with each line of progress.
    """
    tokens = token_ids(texts)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_up_and_decay(step, settings.steps)
    )
    every = max(1, settings.steps // _PROGRESS_LINES)
    for step in range(1, settings.steps + 1):
        batch = tokens[torch.randint(len(tokens), (settings.batch_size,), generator=generator)]
        # The terms are random, so that only the answers count in the loss.
        answers = batch[:, PROMPT_LENGTH:]
        logits = _answer_logits(policy, batch)
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        if step % every == 0:
            log(f"  pretraining step {step} of {settings.steps}: loss {loss.item():.2f}")


def sample(
    policy: LlamaForCausalLM, prompts: Tensor, samples: int, generator: torch.Generator
) -> Rollouts:
    """Sample answers at temperature 1.

    Args:
        policy: The policy.
        prompts: Token ids of the prompts, of shape (prompts, tokens).
        samples: Answers per prompt.
        generator: Random generator.

    Returns:
        The answers.
    """
    return _answer(
        policy,
        prompts,
        samples,
        lambda log_probs: torch.multinomial(log_probs.exp(), 1, generator=generator),
    )


def greedy_answers(policy: LlamaForCausalLM, prompts: Tensor) -> Rollouts:
    """Answer each prompt once, with the most probable token at each position."""
    return _answer(policy, prompts, 1, lambda log_probs: log_probs.argmax(-1, keepdim=True))


def answer_log_probs(policy: LlamaForCausalLM, prompts: Tensor, answers: Tensor) -> Tensor:
    """Differentiable log-probabilities of the tokens of answers.

    Args:
        policy: The policy.
        prompts: Token ids of the prompts, one per answer.
        answers: Token ids of the answers.

    Returns:
        Log-probabilities, in the shape of ``answers``.
    """
    log_probs = _answer_logits(policy, torch.cat([prompts, answers], dim=1)).log_softmax(-1)
    return log_probs.gather(-1, answers[:, :, None])[:, :, 0]


def save(policy: LlamaForCausalLM, folder: Path) -> None:
    """Save a policy, rounded to bfloat16, and its tokenizer as transformers does."""
    copy.deepcopy(policy).bfloat16().save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)


def load(folder: Path) -> LlamaForCausalLM:
    """Load a policy in float32, with exactly the saved values."""
    policy: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return policy


def _warm_up_and_decay(step: int, steps: int) -> float:
    """The factor of the peak learning rate at a step, counted from 0."""
    warm_up = steps / 10
    return min((step + 1) / warm_up, 1 - step / steps, 1.0)


def _answer_logits(policy: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Logits of the answer tokens of full texts."""
    # The logits of a token are at the position before it, so the last position is not needed.
    logits: Tensor = policy(
        input_ids=tokens[:, :-1], logits_to_keep=ANSWER_LENGTH, use_cache=False
    ).logits
    return logits


@torch.no_grad()
def _answer(
    policy: LlamaForCausalLM, prompts: Tensor, samples: int, choose: Callable[[Tensor], Tensor]
) -> Rollouts:
    """Generate answers token by token.

    Args:
        policy: The policy.
        prompts: Token ids of the prompts.
        samples: Answers per prompt.
        choose: Selects one token per row of log-probabilities.

    Returns:
        The answers.
    """
    # One forward pass per prompt serves all of its answers.
    output = policy(input_ids=prompts, logits_to_keep=1, use_cache=True)
    cache = getattr(output, _CACHE)
    cache.batch_repeat_interleave(samples)
    logits = output.logits[:, -1].repeat_interleave(samples, dim=0)
    tokens: list[Tensor] = []
    chosen_log_probs: list[Tensor] = []
    while True:
        log_probs = logits.log_softmax(-1)
        token = choose(log_probs)
        tokens.append(token)
        chosen_log_probs.append(log_probs.gather(-1, token))
        if len(tokens) == ANSWER_LENGTH:
            return Rollouts(torch.cat(tokens, dim=1), torch.cat(chosen_log_probs, dim=1))
        logits = policy(input_ids=token, **{_CACHE: cache}, use_cache=True).logits[:, -1]
