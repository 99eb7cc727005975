"""Train ``FOLDER/base`` with DeepSpeed: ``tests/support/deepspeed_ranks.py FOLDER STAGE PORT``.

STAGE is that of ZeRO. Two ranks train, on the CPU. Runs with deltas are compared with runs of full
checkpoints, bit for bit.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from ranks import forked
from safetensors.torch import load_file
from trainer_ranks import refused, require_equal, require_part, train_grpo
from trainers import EVERY, STEPS, Tokens, make_settings
from transformers import AutoModelForCausalLM, Trainer

from rlsparse_store import open_delta
from rlsparse_store.errors import CheckpointError, DtypeMismatchError, UnsupportedModelError
from rlsparse_store.integrations.trainer import store_as_deltas
from rlsparse_store.integrations.trainer.weights import file_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

RANKS = 2
WEIGHTS = "model.safetensors"
SAVED = range(EVERY, STEPS + 1, EVERY)
BEST = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "eval_steps": EVERY,
    "metric_for_best_model": "loss",
    # Each evaluation is worse than the one before.
    "greater_is_better": True,
    "learning_rate": 3e-3,
    "save_total_limit": 3,
}


def zero(stage: int, *, gathers: bool = True) -> dict[str, Any]:
    """Settings for a stage of ZeRO."""
    optimization = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}
    automatic = (
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "train_batch_size",
    )
    config = {"zero_optimization": optimization, "bf16": {"enabled": "auto"}}
    return {"deepspeed": config | dict.fromkeys(automatic, "auto")}


class Runs:
    """Runs of one model in folders of their own.

    Args:
        root: Where the base is, and the folders.
        rank: This process's.
        settings: Those of all runs.
    """

    def __init__(self, root: Path, rank: int, dtype: str = "auto", **settings: Any) -> None:  # noqa: ANN401
        self.base = root / "base"
        self.root = root
        self.rank = rank
        self.dtype = dtype
        self.settings = settings

    def make(self, name: str, **more: Any) -> Trainer:  # noqa: ANN401
        # Before the model: ZeRO 3 splits it as it is loaded.
        arguments = make_settings(self.root / name, ddp_backend="gloo", **self.settings | more)
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=self.dtype)
        return Trainer(model, arguments, train_dataset=Tokens(), eval_dataset=Tokens())

    def train(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        resume: Any = None,  # noqa: ANN401
        **more: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Train, with deltas if there are options for them."""
        trainer = self.make(name, **more)
        if options is not None:
            store_as_deltas(trainer, self.base, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    def folder(self, name: str, step: int) -> Path:
        return self.root / name / f"checkpoint-{step}"

    def full(self, name: str, step: int) -> dict[str, torch.Tensor]:
        return load_file(self.folder(name, step) / WEIGHTS)

    def require_delta(self, name: str, step: int, expected: Mapping[str, torch.Tensor]) -> None:
        with open_delta(self.folder(name, step), base=self.base) as delta:
            require_equal(dict(delta), expected)

    def require_model(self, trainer: Any, expected: Mapping[str, torch.Tensor]) -> None:  # noqa: ANN401
        """Require that a trainer's model, gathered, has these weights."""
        found = trainer.accelerator.get_state_dict(trainer.deepspeed)
        if self.rank == 0:
            require_part(file_tensors(trainer.model, found), expected)


def losses(trainer: Any) -> list[float]:  # noqa: ANN401
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def bfloat16(root: Path, stage: int, rank: int) -> None:
    """Weights in bfloat16, over masters that DeepSpeed keeps in float32."""
    runs = Runs(root, rank, **zero(stage), bf16=True)
    plain = runs.train("plain")
    trained = runs.train("out", {})
    assert losses(trained) == losses(plain)
    if rank == 0:
        for step in SAVED:
            full = runs.folder("plain", step)
            expected = {path.name for path in full.iterdir()} - {WEIGHTS} | {"rlsparse"}
            assert {path.name for path in runs.folder("out", step).iterdir()} == expected
            runs.require_delta("out", step, runs.full("plain", step))
    resumed = runs.train("out", {}, os.fspath(runs.folder("out", 2)))
    assert losses(resumed) == losses(plain)
    if rank == 0:
        runs.require_delta("out", STEPS, runs.full("plain", STEPS))
    runs.require_model(resumed, runs.full("plain", STEPS))
    # A model in float32 is trained in bfloat16, too. Checkpoints are full while the thread works.
    wide = Runs(root, rank, "float32", **zero(stage), bf16=True)
    wide.train("wide-plain", save_steps=1, save_total_limit=2)
    wide.train("wide", {"queue": 1}, save_steps=1, save_total_limit=2)
    if rank == 0:
        assert {path.name for path in (root / "wide").glob("checkpoint-*")} == {
            "checkpoint-5",
            "checkpoint-6",
        }
        for step in (5, 6):
            wide.require_delta("wide", step, wide.full("wide-plain", step))
    best = runs.train("best", {"background": False}, **BEST)
    chosen = Path(best.state.best_model_checkpoint)
    assert chosen.name == "checkpoint-2"
    with open_delta(chosen, base=runs.base) as delta:
        runs.require_model(best, dict(delta))


def float32(root: Path, stage: int, rank: int) -> None:
    """Weights in float32, which are rounded when asked for."""
    runs = Runs(root, rank, "float32", **zero(stage), learning_rate=1e-3)
    refused(runs.make("masters"), runs.base, DtypeMismatchError, "trained in F32")
    runs.train("masters-plain")
    trainer = runs.train("masters", {"cast": "bf16"}, max_steps=4)
    if rank == 0:
        for step in (2, 4):
            full = runs.full("masters-plain", step)
            # Tied weights once, as in the base.
            names = load_file(runs.base / WEIGHTS)
            rounded = {name: full[name].bfloat16() for name in names}
            runs.require_delta("masters", step, rounded)
    # Exact from any of them, by the state that DeepSpeed saves.
    trainer = runs.train("masters", {"cast": "bf16"}, os.fspath(runs.folder("masters", 2)))
    runs.require_model(trainer, runs.full("masters-plain", STEPS))


def refusals(root: Path, stage: int, rank: int) -> None:
    """What is refused when the trainer is attached, and when it resumes."""
    runs = Runs(root, rank, **zero(stage), bf16=True)
    half = Runs(root, rank, "bfloat16", **zero(stage))
    half.settings["deepspeed"]["fp16"] = {"enabled": True}
    refused(half.make("half", fp16=True), half.base, DtypeMismatchError, "bf16=True")
    if stage == 3:
        parts = Runs(root, rank, **zero(stage, gathers=False), bf16=True)
        text = '"stage3_gather_16bit_weights_on_model_save" to true'
        refused(parts.make("parts"), parts.base, UnsupportedModelError, text)
        node = runs.make("node", save_on_each_node=True)
        refused(node, runs.base, UnsupportedModelError, "save_on_each_node=False")
        # An earlier run of such settings is resumed from, and goes on as it would have.
        parts.train("parts", max_steps=2)
        runs.train("parts", {}, resume=True)
        if rank == 0:
            assert not (runs.folder("parts", 2) / "rlsparse").exists()
            runs.require_delta("parts", STEPS, runs.full("plain", STEPS))
    trainer = runs.make("out")
    store_as_deltas(trainer, runs.base)
    if rank == 0:
        (runs.folder("out", 4) / "trainer_state.json").unlink()
    torch.distributed.barrier()
    try:
        trainer.train(resume_from_checkpoint=os.fspath(runs.folder("out", 4)))
    except CheckpointError as error:
        assert "resume from checkpoint-6" in str(error)  # noqa: PT017 - not a test function
    else:
        raise AssertionError


def grpo(root: Path, stage: int, rank: int) -> None:
    """TRL's trainer."""
    train_grpo(root / "grpo", rank, **zero(stage), bf16=True)


if __name__ == "__main__":
    place, chosen, port = sys.argv[1:]
    number = forked(RANKS)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    # It would compile a module for communication by shared memory, for minutes.
    communication: Any = import_module("deepspeed.comm.torch")
    communication.build_shm_op = lambda: None
    # With Trainer's use_cpu, accelerate does not do it.
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    for check in (bfloat16, float32, refusals, grpo):
        check(Path(place), int(chosen), number)
    torch.distributed.destroy_process_group()
    os._exit(0)
