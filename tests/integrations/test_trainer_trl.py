"""TRL's GRPOTrainer with checkpoints that are deltas."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from rlsparse_store import apply_delta, from_delta, verify_delta
from rlsparse_store.demo.policy import PolicyShape, new_policy, save
from rlsparse_store.demo.task import new_tokenizer
from rlsparse_store.integrations.trainer import store_as_deltas

# TRL has many dependencies; the extra for tests installs it.
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

SHAPE = PolicyShape(hidden_size=32, intermediate_size=48, layers=1, heads=2, initial_std=0.05)


def ones(completions: list[str], **_: Any) -> list[float]:  # noqa: ANN401
    """A reward."""
    return [float(text.count("1")) for text in completions]


def grpo(base: Path, out: Path, steps: int) -> Any:  # noqa: ANN401
    tokenizer = new_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "="  # noqa: S105 - not a password
    settings = trl.GRPOConfig(
        str(out),
        max_steps=steps,
        save_steps=2,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        seed=7,
    )
    prompts = [{"prompt": f"{left:02d}+{20 - left:02d}="} for left in range(16)]
    model = LlamaForCausalLM.from_pretrained(base)
    return trl.GRPOTrainer(
        model,
        ones,
        settings,
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=tokenizer,
    )


def losses(trainer: Any) -> list[dict[str, float]]:  # noqa: ANN401
    """What was logged, without times."""
    return [
        {
            name: value
            for name, value in entry.items()
            if "time" not in name and "per_sec" not in name
        }
        for entry in trainer.state.log_history
    ]


def require_equal(found: Any, expected: Any) -> None:  # noqa: ANN401
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name


def test_grpo(tmp_path: Path) -> None:
    base = tmp_path / "base"
    save(new_policy(SHAPE, seed=1), base)
    plain = grpo(base, tmp_path / "plain", 4)
    plain.train()
    trainer = grpo(base, tmp_path / "out", 4)
    store_as_deltas(trainer, base)
    trainer.train()
    # Training is the same.
    assert type(trainer).__name__ == "GRPOTrainer"
    assert losses(trainer) == losses(plain)
    for step in (2, 4):
        mine = tmp_path / "out" / f"checkpoint-{step}"
        full = tmp_path / "plain" / f"checkpoint-{step}"
        files = {path.name for path in full.iterdir()} - {"model.safetensors"}
        assert {path.name for path in mine.iterdir()} == files | {"rlsparse"}
        verify_delta(mine, base=base, tuned=full)
        apply_delta(mine, tmp_path / f"again-{step}", base=base)
        again = tmp_path / f"again-{step}" / "model.safetensors"
        assert again.read_bytes() == (full / "model.safetensors").read_bytes()
    # Resuming is the same.
    resumed = grpo(base, tmp_path / "out", 4)
    store_as_deltas(resumed, base)
    resumed.train(resume_from_checkpoint=os.fspath(tmp_path / "out" / "checkpoint-2"))
    last = load_file(tmp_path / "plain" / "checkpoint-4" / "model.safetensors")
    require_equal(resumed.model.state_dict(), last)
    require_equal(from_delta(base, tmp_path / "out" / "checkpoint-4").state_dict(), last)
