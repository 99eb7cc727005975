"""Tiny trainers, each a function of its folder alone, so that equal runs are equal bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 6
EVERY = 2


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self._tokens = torch.randint(0, 64, (32, 12), generator=generator)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._tokens[index], "labels": self._tokens[index]}


def make_settings(out: Path, **settings: Any) -> TrainingArguments:  # noqa: ANN401
    """Return settings that save every two of six steps."""
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "save_steps": EVERY,
        "learning_rate": 1e-2,
        # A run of fewer steps is the beginning of a longer one.
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 7,
    } | settings
    return TrainingArguments(str(out), **given)


def make_trainer(base: Path, out: Path, model: Any = None, **settings: Any) -> Trainer:  # noqa: ANN401
    """Return a trainer of the base, or of another model."""
    model = LlamaForCausalLM.from_pretrained(base) if model is None else model
    arguments = make_settings(out, **settings)
    return Trainer(model, arguments, train_dataset=Tokens(), eval_dataset=Tokens())
