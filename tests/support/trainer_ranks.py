"""Train ``FOLDER/base`` on two ranks: ``python tests/support/trainer_ranks.py FOLDER KIND PORT``.

KIND is ``ddp``, for copies of the model on each rank, ``fsdp``, ``masters`` for FSDP with mixed
precision, or ``grpo`` for TRL's trainer with FSDP. The run with deltas, its best model, and a
resumed run are compared with a run of full checkpoints, bit for bit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from ranks import forked
from safetensors.torch import load_file
from trainers import Tokens, make_settings
from transformers import AutoModelForCausalLM, Trainer

from rlsparse_store import open_delta
from rlsparse_store.demo.policy import new_policy, save
from rlsparse_store.errors import DtypeMismatchError, UnsupportedModelError
from rlsparse_store.integrations.trainer import store_as_deltas
from rlsparse_store.integrations.trainer.weights import file_tensors

RANKS = 2


def require_equal(found: Any, expected: Any) -> None:  # noqa: ANN401
    assert found.keys() == expected.keys()
    require_part(found, expected)


def require_part(found: Any, expected: Any) -> None:  # noqa: ANN401
    """Require equal bits. A model may have more names, of tied weights."""
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def require_saved(model: Any, expected: Any) -> None:  # noqa: ANN401
    """Require that saving the model, gathered, would write these tensors."""
    state = {n: getattr(t, "full_tensor", lambda t=t: t)() for n, t in model.state_dict().items()}
    found = file_tensors(model, {name: t.detach().clone() for name, t in state.items()})
    require_part(found, expected)


def make(base: Path, out: Path, **settings: Any) -> Trainer:  # noqa: ANN401
    arguments = make_settings(out, ddp_backend="gloo", **settings)
    if "fsdp" in settings:
        allow_fsdp(arguments)
    model = AutoModelForCausalLM.from_pretrained(base)
    return Trainer(model, arguments, train_dataset=Tokens(), eval_dataset=Tokens())


def allow_fsdp(arguments: Any) -> None:  # noqa: ANN401
    """Let accelerate run FSDP on CPUs, which it takes for others."""
    assert arguments.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def train(
    base: Path,
    out: Path,
    resume: Any = None,  # noqa: ANN401
    options: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    trainer = make(base, out, **settings)
    if options is not None:
        store_as_deltas(trainer, base, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def fsdp(**config: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"fsdp": True, "fsdp_config": config | {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}


def main(root: Path, kind: str, rank: int) -> None:
    base, out = root / "base", root / "out"
    settings = {} if kind == "ddp" else fsdp()
    train(base, root / "plain", **settings)
    full = {
        step: load_file(root / "plain" / f"checkpoint-{step}" / "model.safetensors")
        for step in (2, 4, 6)
    }
    train(base, out, options={}, **settings)
    if rank == 0:
        for step, expected in full.items():
            checkpoint, plain = out / f"checkpoint-{step}", root / "plain" / f"checkpoint-{step}"
            weights = {"model.safetensors", "pytorch_model_fsdp.bin"}
            expected_names = {path.name for path in plain.iterdir()} - weights | {"rlsparse"}
            assert {path.name for path in checkpoint.iterdir()} == expected_names
            with open_delta(checkpoint, base=base) as delta:
                require_equal(dict(delta), expected)
    resumed = train(base, out, str(out / "checkpoint-2"), {}, **settings)
    if rank == 0:
        with open_delta(out / "checkpoint-6", base=base) as delta:
            require_equal(dict(delta), full[6])
    require_saved(resumed.model, full[6])
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        # Each evaluation is worse than the one before.
        "greater_is_better": True,
        "learning_rate": 3e-3,
    }
    trainer = train(base, root / "best", None, {}, **settings, **best)
    chosen = Path(trainer.state.best_model_checkpoint)
    assert chosen.name == "checkpoint-2"
    with open_delta(chosen, base=base) as delta:
        require_saved(trainer.model, dict(delta))


def masters(root: Path, rank: int) -> None:
    base, out = root / "base", root / "out"
    mixed = make(base, out, **fsdp(), bf16=True)
    refused(mixed, base, DtypeMismatchError, "trained in F32")
    sharded = make(base, out, **fsdp(state_dict_type="SHARDED_STATE_DICT"))
    refused(sharded, base, UnsupportedModelError, "FULL_STATE_DICT")
    node = make(base, out, **fsdp(), save_on_each_node=True)
    refused(node, base, UnsupportedModelError, "save_on_each_node=False")
    settings = fsdp() | {"bf16": True, "learning_rate": 1e-4}
    train(base, root / "plain", **settings)
    full = {
        step: load_file(root / "plain" / f"checkpoint-{step}" / "model.safetensors")
        for step in (2, 6)
    }
    train(base, out, None, {"cast": "bf16"}, **settings, max_steps=4)
    train(base, out, True, {"cast": "bf16"}, **settings)  # noqa: FBT003 - as Trainer takes it
    if rank == 0:
        require_equal(load_file(out / "checkpoint-6" / "model.safetensors"), full[6])
        assert not (out / "checkpoint-2" / "pytorch_model_fsdp.bin").exists()
        with open_delta(out / "checkpoint-2", base=base) as delta:
            # Tied weights once, as in the base.
            names = load_file(base / "model.safetensors")
            require_equal(dict(delta), {name: full[2][name].bfloat16() for name in names})


def train_grpo(root: Path, rank: int, **settings: Any) -> None:  # noqa: ANN401
    """Compare TRL's trainer with and without deltas, and resumed."""
    from grpo_trainers import SHAPE, grpo_settings, grpo_trainer  # noqa: PLC0415 - takes seconds

    base = root / "base"
    if rank == 0:
        save(new_policy(SHAPE, seed=1), base)
    torch.distributed.barrier()

    def run(name: str, resume: str | None = None, *, stores: bool = True) -> list[Any]:
        given = grpo_settings(root / name, 4, ddp_backend="gloo", logging_steps=1, **settings)
        if "fsdp" in settings:
            allow_fsdp(given)
        trainer = grpo_trainer(base, given)
        if stores:
            store_as_deltas(trainer, base)
        trainer.train(resume_from_checkpoint=resume)
        logged = trainer.state.log_history
        return [(entry["reward"], entry["loss"]) for entry in logged if "reward" in entry]

    plain = run("plain", stores=False)
    assert len(plain) == 4
    assert run("out") == plain
    assert run("out", os.fspath(root / "out" / "checkpoint-2")) == plain
    if rank == 0:
        for step in (2, 4):
            with open_delta(root / "out" / f"checkpoint-{step}", base=base) as delta:
                full = load_file(root / "plain" / f"checkpoint-{step}" / "model.safetensors")
                require_equal(dict(delta), full)


def refused(trainer: Trainer, base: Path, error: type[Exception], text: str) -> None:
    try:
        store_as_deltas(trainer, base)
    except error as raised:
        assert text in str(raised)  # noqa: PT017 - not a test function
    else:
        raise AssertionError(text)


if __name__ == "__main__":
    folder, chosen, port = sys.argv[1:]
    number = forked(RANKS)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    if chosen == "masters":
        masters(Path(folder), number)
    elif chosen == "grpo":
        # accelerate makes the process group with the first settings.
        make_settings(Path(folder) / "none", ddp_backend="gloo")
        train_grpo(Path(folder), number, **fsdp())
    else:
        main(Path(folder), chosen, number)
    torch.distributed.destroy_process_group()
    os._exit(0)
