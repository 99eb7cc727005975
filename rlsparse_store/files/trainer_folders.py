"""The folders that trainers write: where they put their checkpoints, and what tells these apart."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.folder import walk_files
from rlsparse_store.files.weight_files import SUFFIX, is_rank_part
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "UP",
    "TrainerFolder",
    "as_trainer_folder",
    "checkpoint_names",
    "find_checkpoints",
    "is_step",
    "step_folder",
    "survey_folder",
]

_STEP: Final = re.compile(
    r"(?:best[-_])?"
    r"(?:checkpoint|global_?step|epoch|step|iter|iteration|ckpt|rollout|hf)[-_]?\d+"
    r"(?:[-_]?(?:global_?step|epoch_?step|step|epoch|iter)[-_]?\d+)*(?:_hf)?",
    re.IGNORECASE,
)
"""checkpoint-100 (Trainer, TRL), global_step_100 (verl), epoch_0_step_100 (NeMo Automodel),
step_100 (prime-rl, SkyRL, NeMo-RL), epoch0epochstep9globalstep9 (AReaL), iter_0000100,
rollout_100 (slime), global_step100_hf, best_global_step100_hf (OpenRLHF)."""

_OTHER_MODELS: Final = frozenset({"critic", "value", "reward", "reward_model", "ref", "reference"})
"""Folders of models that were not tuned from the base of the policy."""

UP: Final = 4
"""Folders above a checkpoint that may tell its step, as in NeMo-RL's
step_100/policy/weights/model/consolidated."""


class TrainerFolder(NamedTuple):
    """The folders with safetensors files below the folder of a trainer.

    Attributes:
        checkpoints: The checkpoints of the policy, complete or not.
        others: Why each of the others is none.
    """

    checkpoints: list[Path]
    others: dict[Path, str]


def is_step(name: str) -> bool:
    """Whether a folder of this name belongs to a step of training.

    Example:
        >>> is_step("checkpoint-100"), is_step("epoch_0_step_100"), is_step("transformer")
        (True, True, False)
    """
    return _STEP.fullmatch(name) is not None


def as_trainer_folder(folder: Path) -> TrainerFolder | None:
    """The folder of a trainer, which holds checkpoints and no weights itself.

    Args:
        folder: The folder.

    Returns:
        What is below it; ``None`` if it is a checkpoint itself, or no trainer's.
    """
    if not folder.is_dir() or any(name.name.endswith(SUFFIX) for name in folder.iterdir()):
        return None
    found = survey_folder(folder)
    return found if found.checkpoints else None


def find_checkpoints(folder: Path) -> list[Path]:
    """The folders of the checkpoints in the folder of a trainer; none in another folder.

    Args:
        folder: The folder.
    """
    found = as_trainer_folder(folder)
    return found.checkpoints if found else []


def survey_folder(folder: Path) -> TrainerFolder:
    """The checkpoints below the folder of a trainer, and what else holds safetensors files there.

    A checkpoint is below a folder that is named after its step: ``checkpoint-100/``,
    ``global_step_100/actor/huggingface/``. Adapters are none, and neither is what verl keeps of
    other models than the policy. Deltas, and weights in the folder itself, are left out.

    Args:
        folder: The folder.
    """
    holders: dict[str, list[str]] = {}
    for path in walk_files(folder, depth=UP + 2):
        inside, _, name = path.rpartition("/")
        if inside and name.endswith(SUFFIX) and not name.startswith("."):
            holders.setdefault(inside, []).append(name)
    checkpoints: list[str] = []
    others: dict[Path, str] = {}
    for inside, names in sorted(holders.items()):
        parts = inside.split("/")
        is_inner = any(inside.startswith(f"{outer}/") for outer in checkpoints)
        if is_inner or DELTA_FOLDER in parts:
            continue
        if all(name.startswith("adapter_") for name in names):
            others[folder / inside] = "holds an adapter, not a model; merge it into its base first"
        elif parts[-1] == "sharded" or _is_in_parts(inside, holders):
            others[folder / inside] = "holds the parts of ranks, not a model"
        elif not any(map(is_step, parts)):
            others[folder / inside] = "is not in a folder named after its step (checkpoint-100)"
        elif not _OTHER_MODELS.isdisjoint(parts):
            others[folder / inside] = "is another model than the policy"
        else:
            checkpoints.append(inside)
    return TrainerFolder([folder / inside for inside in checkpoints], others)


def _is_in_parts(inside: str, holders: Mapping[str, Sequence[str]]) -> bool:
    """Whether a folder holds the parts of ranks, which may be merged in a folder below it.

    The part of a single rank is the model, unless there is such a folder.
    """
    names = holders[inside]
    if not all(map(is_rank_part, names)):
        return False
    return len(names) > 1 or any(other.startswith(f"{inside}/") for other in holders)


def step_folder(folder: Path, checkpoint: Path) -> Path:
    """The folder that is named after the step of a checkpoint: the checkpoint or one above it.

    Args:
        folder: The folder of the trainer.
        checkpoint: A checkpoint that :func:`survey_folder` found there.
    """
    places = [checkpoint, *checkpoint.parents]
    return next(p for p in places[: places.index(folder)] if is_step(p.name))


def checkpoint_names(places: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Names for local checkpoints: that of the folder or file, or of the step it belongs to.

    Where these are equal, the parts of the paths that differ are joined.

    Args:
        places: The checkpoints.

    Raises:
        CheckpointError: One is given twice, or its name is not possible for a delta.

    Example:
        >>> checkpoint_names(["run/checkpoint-100", "run/global_step_20/actor/huggingface"])
        ['checkpoint-100', 'global_step_20']
        >>> checkpoint_names(["a/final", "b/final"])
        ['a', 'b']
    """
    paths = [Path(os.path.abspath(place)) for place in places]  # noqa: PTH100 - keeps links
    for place, path in enumerate(paths):
        if path in paths[:place]:
            msg = "is given twice"
            raise CheckpointError(msg, file=printable(str(path)))
    names = [_own_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = _differing_parts(paths)
    for name, path in zip(names, paths, strict=True):
        if not name or name.startswith(".") or names.count(name) > 1:
            msg = "its name cannot be that of a delta; rename it"
            raise CheckpointError(msg, file=printable(str(path)))
    return names


def _own_name(path: Path) -> str:
    if path.is_file():
        return path.stem
    if not re.search(r"\d", path.name):
        # huggingface/, consolidated/: the same for every step.
        above = list(path.parents)[:UP]
        return next((folder.name for folder in above if is_step(folder.name)), path.name)
    return path.name


def _differing_parts(paths: Sequence[Path]) -> list[str]:
    """The paths without the parts that all of them begin and end with."""
    split = [path.with_suffix("").parts if path.is_file() else path.parts for path in paths]
    first = _common(split)
    last = _common([parts[first:][::-1] for parts in split])
    return ["-".join(parts[first : len(parts) - last]) for parts in split]


def _common(rows: Iterable[Sequence[str]]) -> int:
    """How many first entries all rows share."""
    shared = 0
    for entries in zip(*rows, strict=False):
        if len(set(entries)) > 1:
            break
        shared += 1
    return shared
