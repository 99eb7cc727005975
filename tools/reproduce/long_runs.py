#!/usr/bin/env python3
"""Two GRPO runs saved often, from which ``keyframes.py`` measures what keyframes would save.

    python tools/reproduce/long_runs.py encoder OUT --base BASE   # a pretrained BERT encoder, bfloat16
    python tools/reproduce/long_runs.py policy OUT                # the demonstration's Llama, larger

Both train float32 masters by AdamW at a learning rate of 1e-6 and save bfloat16 every 5 steps of
100. Learning rate and seeds were chosen before the first run.

``encoder`` is a bandit: for the first sentence of a docstring of the standard library, the encoder
chooses one of the functions of the batch by cosine similarity; the function with that docstring is
rewarded. ``policy`` is the task of the demonstration.
"""

from __future__ import annotations

import ast
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import torch
from transformers import AutoModel, AutoTokenizer

from problem import training_sums
from rlsparse_store.demo.grpo import GrpoSettings, advantages, clipped_objective
from rlsparse_store.demo.policy import (
    PolicyShape,
    PretrainingSettings,
    answer_log_probs,
    load,
    new_policy,
    pretrain,
    sample,
    save,
    token_ids,
)
from rlsparse_store.demo.task import pretraining_texts, reward

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["SAVED_EVERY", "STEPS"]

STEPS: Final = 100
SAVED_EVERY: Final = 5
LEARNING_RATE: Final = 1e-6
ENCODER_SEED: Final = 11
POLICY_SEED: Final = 12

SETTINGS: Final = GrpoSettings(steps=STEPS, prompts=16, samples=16, learning_rate=LEARNING_RATE)

QUERIES: Final = 24
"""Docstrings of a batch, and functions to choose from."""

TEMPERATURE: Final = 0.05
"""Divides cosine similarities, as in the encoder's own training."""

TOKENS: Final = 48
"""Texts are cut after this many tokens."""


@click.group()
def main() -> None:
    """Train the runs, one at a time and on one thread."""
    torch.set_num_threads(1)


@main.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--base", required=True, type=click.Path(path_type=Path, exists=True))
def encoder(out: Path, base: Path) -> None:
    """Train a BERT encoder to find the function that a docstring describes."""
    bandit = _Bandit(base, out)
    _train(bandit.model, bandit.loss, lambda folder: _save_encoder(bandit.model, folder), out)


@main.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def policy(out: Path) -> None:
    """Pretrain a Llama of 14 million weights on sums, and train it by GRPO."""
    sums = training_sums()
    if not (out / "base").is_dir():
        shape = PolicyShape(
            hidden_size=512, intermediate_size=1536, layers=4, heads=8, initial_std=0.04
        )
        base = new_policy(shape, POLICY_SEED)
        pretraining = PretrainingSettings(steps=300, batch_size=64, learning_rate=7e-4)
        pretrain(base, pretraining_texts(sums), pretraining, POLICY_SEED, click.echo)
        save(base, out / "base")
    model = load(out / "base")
    generator = torch.Generator().manual_seed(POLICY_SEED)

    def loss() -> tuple[Tensor, float]:
        drawn = torch.randperm(len(sums), generator=generator)[: SETTINGS.prompts]
        prompts = [sums[index].prompt for index in drawn.tolist()]
        rollouts = sample(model, token_ids(prompts), SETTINGS.samples, generator)
        repeated = [prompt for prompt in prompts for _ in range(SETTINGS.samples)]
        rewards = torch.tensor(list(map(reward, repeated, rollouts.texts())))
        advantage = advantages(rewards.view(-1, SETTINGS.samples)).view(-1, 1)
        log_probs = answer_log_probs(model, token_ids(repeated), rollouts.answers)
        objective = clipped_objective(log_probs, rollouts.log_probs, advantage, SETTINGS.clip_range)
        return -objective, rewards.mean().item()

    _train(model, loss, lambda folder: save(model, folder), out)


def _train(
    model: nn.Module,
    loss: Callable[[], tuple[Tensor, float]],
    save_to: Callable[[Path], None],
    out: Path,
) -> None:
    """Take all steps, and save every few of them."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SETTINGS.learning_rate, betas=SETTINGS.betas, weight_decay=0
    )
    rewards: list[float] = []
    for step in range(1, STEPS + 1):
        value, mean_reward = loss()
        rewards.append(mean_reward)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.max_grad_norm)
        optimizer.step()
        if step % SAVED_EVERY == 0:
            save_to(out / f"checkpoint-{step}")
            mean = sum(rewards) / len(rewards)
            click.echo(f"step {step} of {STEPS}: mean reward of samples {mean:.3f}")
            rewards.clear()


@dataclass(frozen=True, slots=True)
class _Function:
    """A function of the standard library: its docstring's first sentence, and its code."""

    docstring: str
    code: str


class _Bandit:
    """Choosing the function that a docstring describes.

    Args:
        base: Folder of the encoder.
        out: Folder to save it to, in bfloat16, as ``base``.
    """

    def __init__(self, base: Path, out: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        model = AutoModel.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        if not (out / "base").is_dir():
            _save_encoder(model, out / "base")
        self.model: nn.Module = AutoModel.from_pretrained(
            out / "base", dtype=torch.float32, local_files_only=True
        )
        self._functions = _functions()
        self._generator = torch.Generator().manual_seed(ENCODER_SEED)

    def loss(self) -> tuple[Tensor, float]:
        """The loss of the next batch, and the mean reward of its choices."""
        drawn = torch.randperm(len(self._functions), generator=self._generator)[:QUERIES]
        functions = [self._functions[index] for index in drawn.tolist()]
        queries = self._embed([function.docstring for function in functions])
        codes = self._embed([function.code for function in functions])
        log_probs = (queries @ codes.T / TEMPERATURE).log_softmax(-1)
        chosen = torch.multinomial(
            log_probs.detach().exp(), SETTINGS.samples, replacement=True, generator=self._generator
        )
        rewards = (chosen == torch.arange(QUERIES)[:, None]).float()
        picked = log_probs.gather(1, chosen)
        objective = clipped_objective(
            picked, picked.detach(), advantages(rewards), SETTINGS.clip_range
        )
        return -objective, rewards.mean().item()

    def _embed(self, texts: list[str]) -> Tensor:
        """Unit vectors of texts: means over their tokens."""
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        hidden: Tensor = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)


def _save_encoder(model: nn.Module, folder: Path) -> None:
    """Save an encoder, rounded to bfloat16."""
    weights = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]


def _functions() -> list[_Function]:
    """The documented functions of the standard library's top-level modules, in order."""
    found: dict[str, _Function] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.FunctionDef):
                continue
            docstring = (ast.get_docstring(node) or "").partition("\n\n")[0]
            statements = [ast.unparse(statement) for statement in node.body[1:]]
            if len(docstring.split()) >= 4 and statements:
                code = f"def f({ast.unparse(node.args)}): " + "; ".join(statements)
                found.setdefault(docstring, _Function(docstring, code))
    return list(found.values())


if __name__ == "__main__":
    main()
