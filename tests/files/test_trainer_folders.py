"""The output folders of trainers: which checkpoints they hold, and what their deltas are called."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pairs import bf16_tensor, contents, file_bytes, save, tune

from rlsparse_store.delta import encode_run, inspect_run, measure_pair
from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.trainer_folders import (
    checkpoint_names,
    find_checkpoints,
    step_folder,
    survey_folder,
)
from rlsparse_store.files.trainer_state import read_trainer_state

if TYPE_CHECKING:
    from pathlib import Path

    from pairs import Tensors

A: Tensors = {"a": bf16_tensor(1, 40, 30)}

LAYOUTS = {
    "Trainer": (["checkpoint-100", "checkpoint-200"], ["checkpoint-100", "checkpoint-200"]),
    "verl": (
        ["global_step_10/actor/huggingface", "global_step_100/actor/huggingface"],
        ["global_step_10", "global_step_100"],
    ),
    "Automodel": (
        ["epoch_0_step_5/model/consolidated", "epoch_1_step_10/model/consolidated"],
        ["epoch_0_step_5", "epoch_1_step_10"],
    ),
    "OpenRLHF": (
        ["best_global_step50_hf", "global_step50_hf", "global_step100_hf"],
        ["best_global_step50_hf", "global_step50_hf", "global_step100_hf"],
    ),
    "NeMo-RL": (
        [f"step_{n}/policy/weights/model/consolidated" for n in (5, 10)],
        ["step_5", "step_10"],
    ),
    "AReaL": (
        ["epoch0epochstep9globalstep9", "epoch1epochstep0globalstep10"],
        ["epoch0epochstep9globalstep9", "epoch1epochstep0globalstep10"],
    ),
    "one": (["global_step_10/actor/huggingface"], ["global_step_10"]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_trainers_folder_stands_for_its_checkpoints(tmp_path: Path, kind: str) -> None:
    inside, names = LAYOUTS[kind]
    for number, path in enumerate(inside):
        save(tmp_path / "out" / path, {"a": tune(A["a"], number)})
        (tmp_path / "out" / path / "config.json").write_text("{}")
    (tmp_path / "out" / "training_args.bin").touch()
    base = save(tmp_path / "base", A)
    command = [sys.executable, "-P", "-m", "rlsparse_store", "encode", str(base)]
    subprocess.run(
        [*command, str(tmp_path / "out"), "-o", str(tmp_path / "run")],
        check=True,
        capture_output=True,
    )
    assert [entry.name for entry in inspect_run(tmp_path / "run").deltas] == names
    # The same names one by one, as they would be given while training goes on.
    for path in inside:
        encode_run(base, [tmp_path / "out" / path], tmp_path / "again")
    for name in names:
        again, run = (contents(tmp_path / run / name) for run in ("again", "run"))
        # A note names the checkpoint before: here, of those that were encoded before.
        del again["rlsparse/entry.json"], run["rlsparse/entry.json"]
        assert again == run


def test_what_is_no_checkpoint_of_the_policy_is_left_out(tmp_path: Path) -> None:
    for path in ("actor/huggingface", "critic/huggingface"):
        save(tmp_path / "global_step_1" / path, A)
    adapter = save(tmp_path / "global_step_1" / "actor" / "lora_adapter", A)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    save(tmp_path / "global_step_1" / "actor" / "huggingface" / "2_Dense", A)
    save(tmp_path / "checkpoint-5" / "rlsparse", A)
    parts = save(tmp_path / "step-6" / "sharded", A)
    final = save(tmp_path / "final", A)
    save(tmp_path / "model", A)
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model.safetensors")
    policy = tmp_path / "global_step_1/actor/huggingface"
    found = survey_folder(tmp_path)
    assert found.checkpoints == [policy]
    critic = tmp_path / "global_step_1/critic/huggingface"
    assert {path: why.split(",")[0] for path, why in found.others.items()} == {
        adapter: "holds an adapter",
        parts: "holds the parts of ranks",
        critic: "is another model than the policy",
        final: "is not in a folder named after its step (checkpoint-100)",
    }
    assert step_folder(tmp_path, policy) == tmp_path / "global_step_1"
    assert step_folder(policy.parents[2], policy.parents[1]) == policy.parents[1]


def test_parts_of_ranks_are_no_checkpoint(tmp_path: Path) -> None:
    """The writer of torch.distributed.checkpoint leaves them above the merged files."""
    merged = save(tmp_path / "epoch_0_step_9/model/consolidated", A)
    alone = save(tmp_path / "epoch_1_step_18/model", A)
    (alone / "model.safetensors").rename(alone / part_of_rank(1))
    several = save(tmp_path / "epoch_2_step_27/model", A)
    (several / "model.safetensors").rename(several / part_of_rank(2))
    for folder in (merged.parent, several):
        (folder / part_of_rank(1)).write_bytes(file_bytes(A))
    found = survey_folder(tmp_path)
    assert found.checkpoints == [merged, alone]
    assert found.others == dict.fromkeys(
        (merged.parent, several), "holds the parts of ranks, not a model"
    )
    with open_checkpoint(alone):
        pass
    with pytest.raises(CheckpointError, match=r"parts of 2 ranks.*consolidated"):
        open_checkpoint(several)


def part_of_rank(number: int) -> str:
    return f"shard-{number:05}-model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("best", "name"),
    [
        ("out/checkpoint-100", "checkpoint-100"),
        ("C:\\out\\checkpoint-100\\", "checkpoint-100"),
        ("/", None),
        (None, None),
        (7, None),
    ],
)
def test_the_best_checkpoint_is_known_by_its_folder(
    tmp_path: Path, best: object, name: str | None
) -> None:
    state = {"global_step": 3, "best_model_checkpoint": best, "log_history": [{"loss": 1.0}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert read_trainer_state(tmp_path) == (3, {"loss": 1.0}, name)


def test_a_checkpoint_stands_for_itself(tmp_path: Path) -> None:
    save(tmp_path / "out", A)
    save(tmp_path / "out" / "checkpoint-1", A)
    assert find_checkpoints(tmp_path / "out") == []
    report = measure_pair(tmp_path / "out" / "checkpoint-1", tmp_path / "out")
    assert any("also holds checkpoint-1" in note for note in report.notes)
    assert find_checkpoints(tmp_path / "no") == []
    pipeline = save(tmp_path / "p" / "transformer", A).parent
    assert find_checkpoints(pipeline) == []


def test_names_are_those_that_differ(tmp_path: Path) -> None:
    assert checkpoint_names(["a/b/final", "a/c/final"]) == ["b", "c"]
    assert checkpoint_names(["x/1/m/hf", "x/2/n/hf"]) == ["1-m", "2-n"]
    assert checkpoint_names(["a/one", "b/two"]) == ["one", "two"]
    with pytest.raises(CheckpointError, match="is given twice"):
        checkpoint_names([tmp_path, tmp_path])
