"""Train ``FOLDER/base`` on two ranks: ``python tests/support/trainer_ranks.py FOLDER KIND PORT``.

KIND is ``ddp``, for copies of the model on each rank, ``fsdp``, or ``masters`` for FSDP with mixed
precision. The run with deltas, its best model, and a resumed run are compared with a run of full
checkpoints, bit for bit.
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
from rlsparse_store.errors import DtypeMismatchError, UnsupportedModelError
from rlsparse_store.integrations.trainer import store_as_deltas

RANKS = 2


def require_equal(found: Any, expected: Any) -> None:  # noqa: ANN401
    assert found.keys() == expected.keys()
    require_part(found, expected)


def require_part(found: Any, expected: Any) -> None:  # noqa: ANN401
    """Require equal bits. A model may have more names, of tied weights."""
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def state(model: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def whole(model: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    return {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in state(model).items()}


def make(base: Path, out: Path, **settings: Any) -> Trainer:  # noqa: ANN401
    arguments = make_settings(out, ddp_backend="gloo", **settings)
    if "fsdp" in settings:
        # accelerate does not run FSDP on CPUs, unless it takes them for others.
        assert arguments.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    model = AutoModelForCausalLM.from_pretrained(base)
    return Trainer(model, arguments, train_dataset=Tokens(), eval_dataset=Tokens())


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
    require_part(whole(resumed.model), full[6])
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
        require_part(whole(trainer.model), dict(delta))


def masters(root: Path, rank: int) -> None:
    base, out = root / "base", root / "out"
    refused(base, out, DtypeMismatchError, "trained in F32", **fsdp(), bf16=True)
    sharded = fsdp(state_dict_type="SHARDED_STATE_DICT")
    refused(base, out, UnsupportedModelError, "FULL_STATE_DICT", **sharded)
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
            require_equal(dict(delta), {name: t.bfloat16() for name, t in full[2].items()})


def refused(base: Path, out: Path, error: type[Exception], text: str, **settings: Any) -> None:  # noqa: ANN401
    try:
        store_as_deltas(make(base, out, **settings), base)
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
    else:
        main(Path(folder), chosen, number)
    torch.distributed.destroy_process_group()
    os._exit(0)
