"""Trainers whose checkpoints are deltas."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import small_llama
from safetensors.torch import load_file
from trainers import STEPS, make_trainer

from rlsparse_store import apply_delta, from_delta, verify_delta
from rlsparse_store.integrations.trainer import store_as_deltas

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    small_llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without deltas."""
    out = tmp_path_factory.mktemp("plain") / "out"
    make_trainer(base, out).train()
    return out


def checkpoint(out: Path, step: int) -> Path:
    return out / f"checkpoint-{step}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rebuilt(folder: Path, base: Path, tmp_path: Path) -> bytes:
    """The full weights of a checkpoint that is a delta."""
    out = tmp_path / f"rebuilt-{folder.parent.name}-{folder.name}"
    apply_delta(folder, out, base=base)
    return (out / "model.safetensors").read_bytes()


def require_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def trained(base: Path, out: Path, resume: Any = None, **settings: Any) -> Any:  # noqa: ANN401
    """Train with deltas."""
    options = {key: settings.pop(key) for key in ("background", "keep", "cast") if key in settings}
    trainer = make_trainer(base, out, **settings)
    store_as_deltas(trainer, base, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("background", [True, False])
def test_checkpoints_are_the_full_saves_bit_for_bit(
    base: Path,
    plain: Path,
    tmp_path: Path,
    background: bool,  # noqa: FBT001
) -> None:
    trainer = trained(base, tmp_path / "out", background=background)
    assert type(trainer).__name__ == "Trainer"
    for step in (2, 4, 6):
        mine, full = checkpoint(tmp_path / "out", step), checkpoint(plain, step)
        assert names(mine) == names(full) - {"model.safetensors"} | {"rlsparse"}
        weights = (full / "model.safetensors").read_bytes()
        assert rebuilt(mine, base, tmp_path) == weights
        verify_delta(mine, base=base, tuned=full)
        for name in ("optimizer.pt", "scheduler.pt", "config.json"):
            assert (mine / name).read_bytes() == (full / name).read_bytes(), name
    assert names(tmp_path / "out") == names(plain)
    loaded = from_delta(base, checkpoint(tmp_path / "out", 6)).state_dict()
    require_equal(loaded, trainer.model.state_dict())


@pytest.mark.parametrize("by_path", [True, False])
def test_resuming_is_exact(base: Path, plain: Path, tmp_path: Path, by_path: bool) -> None:  # noqa: FBT001
    out = tmp_path / "out"
    trained(base, out, max_steps=4)
    trainer = trained(base, out, str(checkpoint(out, 2)) if by_path else True)
    expected = load_file(checkpoint(plain, 6) / "model.safetensors")
    require_equal(trainer.model.state_dict(), expected)
    assert (
        rebuilt(checkpoint(out, 6), base, tmp_path)
        == (checkpoint(plain, 6) / "model.safetensors").read_bytes()
    )
    assert trainer.state.global_step == STEPS


def test_a_full_checkpoint_of_an_earlier_run_is_resumed_from(
    base: Path, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(checkpoint(plain, 2), checkpoint(out, 2))
    trained(base, out, resume=True)
    assert (checkpoint(out, 2) / "model.safetensors").is_file()
    expected = (checkpoint(plain, 6) / "model.safetensors").read_bytes()
    assert rebuilt(checkpoint(out, 6), base, tmp_path) == expected


@pytest.mark.parametrize("background", [True, False])
def test_rotation_removes_the_oldest(base: Path, tmp_path: Path, background: bool) -> None:  # noqa: FBT001
    out = tmp_path / "out"
    settings = {"save_steps": 1, "save_total_limit": 2, "background": background}
    trained(base, out, **settings)
    assert names(out) == {"checkpoint-5", "checkpoint-6"}
    for step in (5, 6):
        verify_delta(checkpoint(out, step), base=base)


def test_the_best_model_is_loaded_from_its_delta(base: Path, tmp_path: Path) -> None:
    settings = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        # Each evaluation is worse than the one before.
        "greater_is_better": True,
        "learning_rate": 3e-3,
        "save_total_limit": 2,
    }
    trainer = trained(base, tmp_path / "out", **settings)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    require_equal(trainer.model.state_dict(), from_delta(base, best).state_dict())
    assert names(tmp_path / "out") == {"checkpoint-2", "checkpoint-6"}


def test_a_save_by_the_user_is_full(base: Path, tmp_path: Path) -> None:
    trainer = trained(base, tmp_path / "out")
    trainer.save_model(str(tmp_path / "mine"))
    saved = load_file(tmp_path / "mine" / "model.safetensors")
    require_equal(saved, trainer.model.state_dict())
