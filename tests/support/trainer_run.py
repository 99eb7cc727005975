"""A run of transformers' Trainer on a tiny model, which saves at every step and rotates.

    python tests/support/trainer_run.py BASE OUT STEPS LIMIT LOG

LOG gets one line of JSON for each checkpoint: its step and the SHA-256 of its weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pairs import SINGLE
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState


class Data(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 32, (8,), generator=torch.Generator().manual_seed(number))
        return {"input_ids": tokens, "labels": tokens}


class Log(TrainerCallback):
    """Notes each checkpoint that is complete, and lets it live for a moment."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,  # noqa: ANN401
    ) -> None:
        del control
        assert args.output_dir is not None
        weights = Path(args.output_dir) / f"checkpoint-{state.global_step}" / SINGLE
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        with self._log.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "sha256": digest}) + "\n")
        time.sleep(0.15)


def main() -> None:
    base, out, log = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[5])
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=int(sys.argv[3]),
        save_steps=1,
        save_total_limit=int(sys.argv[4]),
        logging_steps=1,
        learning_rate=1e-5,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    trainer = Trainer(model, arguments, train_dataset=Data(), callbacks=[Log(log)])
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
