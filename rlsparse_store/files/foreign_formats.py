"""Weights that are not safetensors: what wrote them, and what turns them into a checkpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.errors import CheckpointError, PickleRefusedError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["PICKLED", "no_weights", "pickled_weights", "unsafe_file"]

PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".distcp")
"""Endings of files that loaders unpickle."""

_NAMED: Final = 5
"""Folders that a message lists."""


class _Format(NamedTuple):
    """The files of a framework, found by their names.

    Attributes:
        pattern: Matches the path of a file.
        text: What they are, and what merges them.
    """

    pattern: re.Pattern[str]
    text: str


_FORMATS: Final = (
    _Format(
        re.compile(r"(?:.*/)?model_world_size_\d+_rank_\d+\.pt"),
        "holds the parts of verl's ranks, not a model; merge them first: python -m "
        "verl.model_merger merge --backend fsdp --local_dir ACTOR --target_dir OUT",
    ),
    _Format(
        re.compile(r"(?:.*/)?(?:zero_to_fp32\.py|.*_(?:model|optim)_states\.pt)"),
        "holds the parts of DeepSpeed's ranks, not a model; merge them first: python "
        "zero_to_fp32.py . OUT --safe_serialization",
    ),
    _Format(
        re.compile(
            r"(?:.*/)?(?:latest_checkpointed_iteration\.txt|mp_rank_\d\d(?:_\d+)?/.*\.pt|common\.pt)"
        ),
        "holds the parts of Megatron's ranks, not a model; export it to the Hugging Face format "
        "first (Megatron Bridge: AutoBridge.export_ckpt; verl: python -m verl.model_merger merge "
        "--backend megatron)",
    ),
    _Format(
        re.compile(r"(?:.*/)?(?:\.metadata|[^/]*\.distcp)"),
        "holds the ranks' parts of a distributed checkpoint (FSDP, DCP), not a model; merge them "
        "first: accelerate merge-weights FOLDER OUT, FOLDER being the one with the .distcp files",
    ),
)


def pickled_weights() -> str:
    """Why pickled weights are refused, and what to do."""
    return (
        "holds pickled weights, which are never read because that could run code; convert it "
        "first: load it with transformers and save_pretrained(), which writes safetensors"
    )


def unsafe_file(name: str, place: Path) -> PickleRefusedError | None:
    """The refusal of a file that its name shows to be pickled."""
    for known in _FORMATS:
        if known.pattern.fullmatch(name):
            return PickleRefusedError(known.text, file=place)
    return PickleRefusedError(pickled_weights(), file=place) if name.endswith(PICKLED) else None


def no_weights(
    names: Iterable[str], place: Path, remedy: str = "give one of them"
) -> CheckpointError:
    """The refusal of a folder or a repository that holds no safetensors weights itself.

    Args:
        names: Paths of the files in it and in its folders.
        place: What it is called.
        remedy: What to do if folders in it hold weights.
    """
    names = sorted(names)
    within = _folders_with_weights(names)
    if within:
        listed = ", ".join(printable(f"{name}/") for name in within[:_NAMED])
        more = f" and {len(within) - _NAMED} more" if len(within) > _NAMED else ""
        msg = f"holds no weights itself, but these folders do: {listed}{more}; {remedy}"
        return CheckpointError(msg, file=place)
    for known in _FORMATS:
        if any(map(known.pattern.fullmatch, names)):
            return PickleRefusedError(known.text, file=place)
    top = [name for name in names if "/" not in name]
    if any(name.endswith(PICKLED) for name in top):
        return PickleRefusedError(pickled_weights(), file=place)
    msg = "holds no safetensors file"
    if any(name.endswith(".gguf") for name in top):
        msg += ", only GGUF, whose weights are quantised anew; give the safetensors checkpoint"
    return CheckpointError(msg, file=place)


def _folders_with_weights(names: list[str]) -> list[str]:
    folders = (name.rpartition("/")[0] for name in names if name.endswith(".safetensors"))
    return list(dict.fromkeys(folder for folder in folders if folder))
