"""The folder of a checkpoint: whether it is finished, and how a delta takes its place in it.

Trainer writes ``trainer_state.json`` last. A checkpoint is finished if it has this file, and its
weights, full or as a delta.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.rename import flush_folder, move_files, rename_folder
from rlsparse_store.files.trainer_state import STATE_NAME as STATE
from rlsparse_store.files.trainer_state import read_trainer_state
from rlsparse_store.format.file_names import DELTA_FOLDER, INDEX_FILE, SINGLE_FILE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DRAFTS",
    "clear_checkpoint",
    "draft_of",
    "full_weights",
    "has_deepspeed_state",
    "has_delta",
    "is_finished",
    "last_checkpoint",
    "last_finished",
    "place_delta",
    "remove_drafts",
]

_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")

_FULL: Final = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|pytorch_model_fsdp\.bin"
)
"""The last is what Trainer resumes from with FSDP."""

_OTHER_WEIGHTS: Final = re.compile(r"(pytorch_model|adapter_model).*")
"""What Trainer resumes from besides: files of earlier versions, adapters, and shards of FSDP."""

DRAFTS: Final = "_rlsparse"
"""The folder, beside the checkpoints, of deltas that are being written, and of the lock of the
process that writes them. Trainer does not push names that begin with an underscore to the Hub."""

OTHER_FILES: Final = ".others"
"""The folder, in a checkpoint, where Trainer writes what is not weights."""


def full_weights(folder: Path) -> list[Path]:
    """The files of a checkpoint's full weights."""
    return sorted(path for path in folder.iterdir() if _FULL.fullmatch(path.name))


def has_delta(folder: Path) -> bool:
    """Whether a checkpoint's weights are a complete delta."""
    return any((folder / DELTA_FOLDER / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def is_finished(folder: Path) -> bool:
    """Whether training can resume from a checkpoint, or was killed while it was being written."""
    return _has_state(folder) and (
        has_delta(folder)
        or any(
            _FULL.fullmatch(path.name) or _OTHER_WEIGHTS.fullmatch(path.name)
            for path in folder.iterdir()
        )
    )


def has_deepspeed_state(folder: Path) -> bool:
    """Whether training with DeepSpeed can resume from a checkpoint, whatever weights it has."""
    return _has_state(folder) and any(folder.glob("global_step*"))


def _has_state(folder: Path) -> bool:
    try:
        return read_trainer_state(folder).step is not None
    except CheckpointError:
        return False


def last_finished(folder: Path) -> Path | None:
    """The finished checkpoint of the highest step in a trainer's folder, if there is one."""
    return next(filter(is_finished, _newest_first(folder)), None)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a trainer's folder, finished or not."""
    return next(iter(_newest_first(folder)), None)


def _newest_first(folder: Path) -> list[Path]:
    steps = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir()
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def clear_checkpoint(folder: Path) -> None:
    """Remove the weights that an interrupted run left in a checkpoint, which is written again.

    The rest of its files are replaced one by one, so that it is not finished until the last.
    """
    (folder / STATE).unlink(missing_ok=True)
    for name in (DELTA_FOLDER, OTHER_FILES):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in full_weights(folder):
        path.unlink()


def draft_of(folder: Path) -> Path:
    """The place where a checkpoint's delta is written, on the same file system.

    It is not in the checkpoint: Trainer rotates checkpoints by the times of their folders.
    """
    return folder.parent / DRAFTS / folder.name.rpartition("-")[2]


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process left unfinished in a trainer's folder."""
    for draft in (folder / DRAFTS).glob("[0-9]*"):
        shutil.rmtree(draft, ignore_errors=True)


def place_delta(draft: Path, folder: Path) -> None:
    """Move a complete delta into its checkpoint, and remove the full weights there.

    The folder keeps its time, so that it keeps its place in Trainer's rotation.

    Raises:
        OSError: The file system failed.
    """
    found = folder.stat()
    written, target = draft / DELTA_FOLDER, folder / DELTA_FOLDER
    if not rename_folder(written, target):
        move_files(written, target)
    flush_folder(folder)
    for path in full_weights(folder):
        path.unlink()
    os.utime(folder, ns=(found.st_atime_ns, found.st_mtime_ns))
