"""TRL's GRPOTrainer with checkpoints that are deltas."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from grpo_trainers import SHAPE, grpo_settings, grpo_trainer
from safetensors.torch import load_file

from rlsparse_store import apply_delta, from_delta, verify_delta
from rlsparse_store.demo.policy import new_policy, save
from rlsparse_store.integrations.trainer import store_as_deltas

# TRL has many dependencies; the extra for tests installs it.
pytest.importorskip("trl")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


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
    plain = grpo_trainer(base, grpo_settings(tmp_path / "plain", 4))
    plain.train()
    trainer = grpo_trainer(base, grpo_settings(tmp_path / "out", 4))
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
    resumed = grpo_trainer(base, grpo_settings(tmp_path / "out", 4))
    store_as_deltas(resumed, base)
    resumed.train(resume_from_checkpoint=os.fspath(tmp_path / "out" / "checkpoint-2"))
    last = load_file(tmp_path / "plain" / "checkpoint-4" / "model.safetensors")
    require_equal(resumed.model.state_dict(), last)
    require_equal(from_delta(base, tmp_path / "out" / "checkpoint-4").state_dict(), last)
