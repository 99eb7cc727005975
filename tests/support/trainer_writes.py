"""Checkpoints written as trainers write them: the same files in the same order, stopped anywhere.

Each writer is a generator that stops between any two writes, where a watcher may look.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pairs import INDEX, SINGLE, Tensors, file_bytes, write_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["TRAINERS", "Trainer", "write_all"]


@dataclass(frozen=True)
class Trainer:
    """How a trainer writes.

    Attributes:
        write: Writes the checkpoint of a step into the trainer's folder.
        step: The folder of a step.
        inside: The folder with the weights in that.
        above: The folder in which the folders of the steps are.
        has_marker: Whether it writes a marker.
    """

    write: Callable[[Path, int, Tensors], Iterator[None]]
    step: str
    inside: str = ""
    above: str = ""
    has_marker: bool = True

    def name(self, step: int) -> str:
        """The name of the entry of a step."""
        return self.step.format(step)


def write_all(trainer: Trainer, folder: Path, step: int, tensors: Tensors) -> Path:
    """Write a whole checkpoint, and return the folder with its weights."""
    for _ in trainer.write(folder, step, tensors):
        pass
    return folder / trainer.above / trainer.name(step) / trainer.inside


def _in_pieces(path: Path, content: bytes) -> Iterator[None]:
    with path.open("wb", buffering=0) as file:
        half = len(content) // 2
        for piece in (content[:half], content[half:]):
            file.write(piece)
            yield


def _pretrained(folder: Path, tensors: Tensors) -> Iterator[None]:
    """As save_pretrained: the configuration first, then the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    yield
    yield from _in_pieces(folder / SINGLE, file_bytes(tensors, {"format": "pt"}))


def _trainer(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    here = folder / f"checkpoint-{step}"
    yield from _pretrained(here, tensors)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        yield from _in_pieces(here / name, b"state of training")
    logged = [{"step": step, "loss": 2.5}, {"step": step, "reward": step / 1000}]
    state = {"global_step": step, "best_model_checkpoint": None, "log_history": logged}
    yield from _in_pieces(here / "trainer_state.json", json.dumps(state, indent=2).encode())


def _trl(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    here = folder / f"checkpoint-{step}"
    here.mkdir(parents=True, exist_ok=True)
    (here / "README.md").write_text("# A model card")
    yield
    yield from _trainer(folder, step, tensors)


def _openrlhf(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    parts = folder / "_actor" / f"global_step{step}"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "mp_rank_00_model_states.pt").write_bytes(b"parts of DeepSpeed")
    yield
    here = folder / f"global_step{step}_hf"
    yield from _pretrained(here, tensors)
    (here / "tokenizer.json").write_text("{}")
    yield


def _verl_parts(actor: Path) -> Iterator[None]:
    actor.mkdir(parents=True, exist_ok=True)
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"parts of FSDP")
    yield


def _verl_end(folder: Path, step: int) -> Iterator[None]:
    (folder / f"global_step_{step}" / "data.pt").write_bytes(b"a data loader")
    yield
    yield from _in_pieces(folder / "latest_checkpointed_iteration.txt", str(step).encode())


def _verl(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    actor = folder / f"global_step_{step}" / "actor"
    yield from _verl_parts(actor)
    (actor / "huggingface").mkdir(exist_ok=True)
    (actor / "huggingface/tokenizer.json").write_text("{}")
    yield
    yield from _pretrained(actor / "huggingface", tensors)
    critic = folder / f"global_step_{step}" / "critic" / "huggingface"
    yield from _pretrained(critic, {"score.weight": next(iter(tensors.values()))})
    yield from _verl_end(folder, step)


def _verl_megatron(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    actor = folder / f"global_step_{step}" / "actor"
    (actor / "optimizer/dist_ckpt").mkdir(parents=True, exist_ok=True)
    (actor / "optimizer/dist_ckpt/__0_0.distcp").write_bytes(b"parts of Megatron")
    yield from _pretrained(actor / "model/huggingface", tensors)
    (actor / "ckpt_contents.json").write_text("{}")
    yield
    yield from _verl_end(folder, step)


def _slime(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    """--save-hf FOLDER/step_{rollout_id}."""
    here = folder / f"step_{step}"
    here.mkdir(parents=True, exist_ok=True)
    for old in (*here.glob("*.safetensors"), here / INDEX):
        old.unlink(missing_ok=True)
        yield
    (here / "config.json").write_text('{"model_type": "qwen3"}')
    yield
    names = sorted(tensors)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    for number, shard in enumerate(shards, 1):
        part = {name: tensors[name] for name in shard}
        content = file_bytes(part, {"format": "pt"})
        yield from _in_pieces(here / f"model-{number:05}.safetensors", content)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-00002.safetensors"
        (here / f"model-{number:05}.safetensors").rename(here / name)
        weight_map |= dict.fromkeys(shard, name)
        yield
    write_index(here, weight_map, {"total_size": 1})
    yield


def _prime_rl(folder: Path, step: int, tensors: Tensors) -> Iterator[None]:
    """No configuration, and the weights of two ranks."""
    here = folder / "broadcasts" / f"step_{step}"
    here.mkdir(parents=True, exist_ok=True)
    yield
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for rank in range(2):
        part = {name: tensors[name] for name in names[rank::2]}
        temporary = here / f"tmp-rank{rank}.safetensors"
        yield from _in_pieces(temporary, file_bytes(part, {"format": "pt"}))
    for rank in range(2):
        name = f"model-{rank + 1:05}-of-00002.safetensors"
        (here / f"tmp-rank{rank}.safetensors").rename(here / name)
        weight_map |= dict.fromkeys(names[rank::2], name)
        yield
    write_index(here, weight_map, {"total_size": 1})
    yield
    (here / "STABLE").touch()
    yield


TRAINERS = {
    "Trainer": Trainer(_trainer, "checkpoint-{}"),
    "TRL": Trainer(_trl, "checkpoint-{}"),
    "OpenRLHF": Trainer(_openrlhf, "global_step{}_hf", has_marker=False),
    "verl": Trainer(_verl, "global_step_{}", "actor/huggingface"),
    "verl, Megatron": Trainer(_verl_megatron, "global_step_{}", "actor/model/huggingface"),
    "slime": Trainer(_slime, "step_{}", has_marker=False),
    "prime-rl": Trainer(_prime_rl, "step_{}", above="broadcasts"),
}
