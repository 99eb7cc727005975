"""The folders that trainers write: where they put their checkpoints, and what tells these apart."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.folder import files_below
from rlsparse_store.files.weight_files import SUFFIX
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["checkpoint_names", "find_checkpoints", "is_step"]

_STEP: Final = re.compile(
    r"(?:checkpoint|global_?step|epoch|step|iter|iteration|ckpt)[-_]?\d+"
    r"(?:[-_](?:step|epoch|iter)[-_]?\d+)*(?:_hf)?",
    re.IGNORECASE,
)
"""checkpoint-100 (Trainer, TRL), global_step_100 (verl), epoch_0_step_100 (NeMo Automodel),
step_100 (prime-rl, SkyRL), iter_0000100 (slime), global_step100_hf (OpenRLHF)."""

_OTHER_MODELS: Final = frozenset({"critic", "reward", "reward_model", "ref", "reference"})
"""Folders of models that were not tuned from the base of the policy."""

UP: Final = 4
"""Folders above a checkpoint that may tell its step."""


def is_step(name: str) -> bool:
    """Whether a folder of this name belongs to a step of training.

    Example:
        >>> is_step("checkpoint-100"), is_step("epoch_0_step_100"), is_step("transformer")
        (True, True, False)
    """
    return _STEP.fullmatch(name) is not None


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a trainer, which holds no weights itself.

    A checkpoint lies below a folder that is named after its step: ``checkpoint-100/``,
    ``global_step_100/actor/huggingface/``. Adapters, and what verl keeps of other models than the
    policy, are left out.

    Args:
        folder: The folder.

    Returns:
        Their folders; none if the folder is a checkpoint itself, or no trainer's.
    """
    if not folder.is_dir() or any(name.name.endswith(SUFFIX) for name in folder.iterdir()):
        return []
    holders: dict[str, list[str]] = {}
    for path in files_below(folder, depth=UP + 1):
        inside, _, name = path.rpartition("/")
        if name.endswith(SUFFIX) and not name.startswith("."):
            holders.setdefault(inside, []).append(name)
    found: list[str] = []
    for inside, names in sorted(holders.items()):
        parts = inside.split("/")
        is_adapter = all(name.startswith("adapter_") for name in names)
        is_inner = any(inside.startswith(f"{outer}/") for outer in found)
        if any(map(is_step, parts)) and not is_adapter and not is_inner:
            found.append(inside)
    policies = [inside for inside in found if not _OTHER_MODELS.intersection(inside.split("/"))]
    return [folder / inside for inside in policies or found]


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
