"""The policy: a small Llama that is pretrained on text, asked for answers, saved and loaded.

All arithmetic is in 32 bits; the files are in bfloat16, as checkpoints of large models are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

_PROGRESS_LINES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShape:
    """The shape of the model.

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
    """How the base model is trained.

    Attributes:
        steps: Updates of the weights.
        batch_size: Texts for each update.
        learning_rate: The highest learning rate; it rises to this and falls again, linearly.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Gradients longer than this are scaled down to it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Answers sampled from a policy: all the answers to the first prompt, then to the second...

    Attributes:
        answers: Token ids, of shape (answers, tokens).
        log_probs: The log-probability the policy gave to each of these tokens, of the same shape.
    """

    answers: Tensor
    log_probs: Tensor

    def texts(self) -> list[str]:
        """The answers as text."""
        return [decode(row) for row in self.answers.tolist()]


def new_policy(shape: PolicyShape, seed: int) -> LlamaForCausalLM:
    """Make a policy with random weights."""
    config = LlamaConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=PROMPT_LENGTH + ANSWER_LENGTH,
        initializer_range=shape.initial_std,
        # All texts have the same length, so none of these is needed.
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    # Models are initialized from the global generator; leave it as it was.
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
    say: Callable[[str], None],
) -> None:
    """Train a policy, in place, to give the answers that are in some texts.

    Args:
        policy: The policy.
        texts: Prompts with their answers. Batches are drawn from them at random.
        settings: How to train.
        seed: Decides the batches.
        say: Called with lines about the progress.
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
        # The terms of a sum are random: only its answer can be learned.
        answers = batch[:, PROMPT_LENGTH:]
        logits = _answer_logits(policy, batch)
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        if step % every == 0:
            say(f"  pretraining step {step} of {settings.steps}: loss {loss.item():.2f}")


def sample(
    policy: LlamaForCausalLM, prompts: Tensor, samples: int, generator: torch.Generator
) -> Rollouts:
    """Sample answers at temperature 1.

    Args:
        policy: The policy.
        prompts: Token ids of the prompts, of shape (prompts, tokens).
        samples: How many answers to sample for each prompt.
        generator: The source of randomness.

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
    """Answer each prompt once, always with the most likely token."""
    return _answer(policy, prompts, 1, lambda log_probs: log_probs.argmax(-1, keepdim=True))


def answer_log_probs(policy: LlamaForCausalLM, prompts: Tensor, answers: Tensor) -> Tensor:
    """The log-probability of each token of given answers, differentiable.

    Args:
        policy: The policy.
        prompts: Token ids of the prompts, one for each answer.
        answers: Token ids of the answers.

    Returns:
        Log-probabilities, in the shape of ``answers``.
    """
    log_probs = _answer_logits(policy, torch.cat([prompts, answers], dim=1)).log_softmax(-1)
    return log_probs.gather(-1, answers[:, :, None])[:, :, 0]


def save(policy: LlamaForCausalLM, folder: Path) -> None:
    """Write a policy, rounded to bfloat16, and its tokenizer as a Hugging Face directory."""
    copy.deepcopy(policy).bfloat16().save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)


def load(folder: Path) -> LlamaForCausalLM:
    """Read a policy. Its weights are in 32 bits, and have the very values in the file."""
    policy: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return policy


def _warm_up_and_decay(step: int, steps: int) -> float:
    """The share of the highest learning rate to use at a step, counted from 0."""
    warm_up = steps / 10
    return min((step + 1) / warm_up, 1 - step / steps, 1.0)


def _answer_logits(policy: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """The logits for the answers in full texts: each from the tokens before it."""
    # The last token of a text predicts nothing. Logits are asked for the others that come just
    # before a token of the answer.
    logits: Tensor = policy(
        input_ids=tokens[:, :-1], logits_to_keep=ANSWER_LENGTH, use_cache=False
    ).logits
    return logits


@torch.no_grad()
def _answer(
    policy: LlamaForCausalLM, prompts: Tensor, samples: int, choose: Callable[[Tensor], Tensor]
) -> Rollouts:
    """Answer prompts token by token.

    Args:
        policy: The policy.
        prompts: Token ids of the prompts.
        samples: How many answers to give to each prompt.
        choose: Picks one token for each row of log-probabilities.

    Returns:
        The answers.
    """
    # Each prompt is read once, for all of its answers.
    output = policy(input_ids=prompts, logits_to_keep=1, use_cache=True)
    cache = output.past_key_values
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
        logits = policy(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
