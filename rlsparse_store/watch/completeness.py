"""When a checkpoint is complete: its trainer says so, or nothing changed in it for a while."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.run_files import step_in_name
from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.trainer_state import STATE_NAME, read_trainer_state
from rlsparse_store.files.weight_files import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = [
    "FileStamp",
    "FoundCheckpoint",
    "Listing",
    "Settling",
    "has_marker",
    "list_checkpoint",
    "tracked_step",
]

MARKERS: Final = ("STABLE", ".complete")
"""Empty files that trainers write last: STABLE is prime-rl's."""

TRACKER: Final = "latest_checkpointed_iteration.txt"
"""Beside the folders of the steps: the last step that verl or Megatron saved."""

_DRAFT: Final = re.compile(r"tmp-rank.*|model-\d+" + re.escape(SUFFIX))
"""Weight files that prime-rl and slime rename once all of them are written."""

_ARGUMENTS: Final = "training_args.bin"
"""What Trainer writes after the weights."""

_TRACKER_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells one version of a file from another.

    Attributes:
        nbytes: Its length.
        modified: Its modification time in nanoseconds.
    """

    nbytes: int
    modified: int

    @classmethod
    def of(cls, path: Path | os.DirEntry[str]) -> FileStamp:
        """The stamp of a file.

        Raises:
            OSError: There is no such file.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a checkpoint at one moment.

    Attributes:
        files: Their stamps, by their paths within the checkpoint's folder.
    """

    files: dict[str, FileStamp]

    @property
    def weights(self) -> dict[str, FileStamp]:
        """The safetensors files at its top."""
        return {
            name: stamp
            for name, stamp in self.files.items()
            if name.endswith(SUFFIX) and "/" not in name
        }

    @property
    def weights_written(self) -> int:
        """When the newest of these was written, in nanoseconds."""
        return max(stamp.modified for stamp in self.weights.values())

    @property
    def is_draft(self) -> bool:
        """Whether names show that the trainer has not finished.

        A weight file has the name of one in progress, or Trainer has not written its state, which
        comes last. While it gathers the optimizer's state, no file may change for minutes.
        """
        is_trainers = _ARGUMENTS in self.files and STATE_NAME not in self.files
        return is_trainers or any(map(_DRAFT.fullmatch, self.weights))

    def only_lost(self, later: Listing | None) -> bool:
        """Whether files were removed since, and none added or changed."""
        return later is None or later.files.items() <= self.files.items()


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A checkpoint in the trainer's folder.

    Attributes:
        path: Its folder.
        step: The folder that is named after its step: this one or one above it.
        listing: Its files.
    """

    path: Path
    step: Path
    listing: Listing

    @property
    def name(self) -> str:
        """The name of its entry."""
        return self.step.name

    @property
    def number(self) -> int | None:
        """Its step, as the name says."""
        return step_in_name(self.name)


def list_checkpoint(checkpoint: Path) -> Listing | None:
    """List the files of a checkpoint and of the folders in it.

    Args:
        checkpoint: Its folder.

    Returns:
        The listing, or ``None`` if it has no weights (any more).

    Raises:
        OSError: A folder or a file in it cannot be looked at.
    """
    files: dict[str, FileStamp] = {}
    folders = [checkpoint]
    while folders:
        here = folders.pop()
        # What is removed meanwhile is missing in the listing.
        with suppress(FileNotFoundError), os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(here / entry.name)
                    continue
                with suppress(FileNotFoundError):
                    path = (here / entry.name).relative_to(checkpoint)
                    files[path.as_posix()] = FileStamp.of(entry)
    found = Listing(files)
    return found if found.weights else None


def has_marker(found: FoundCheckpoint) -> bool:
    """Whether the trainer says that a checkpoint is complete.

    A marker that is older than the weights belongs to an earlier version of them: a resumed run
    writes checkpoints again.
    """
    path, step, written = found.path, found.step, found.listing.weights_written
    above = [folder for folder in path.parents if step in (folder, *folder.parents)]
    if any(_is_later(place / name, written) for place in (path, *above) for name in MARKERS):
        return True
    if _is_later(path / STATE_NAME, written) and _is_state(path):
        return True
    try:
        last, number = tracked_step(step.parent), found.number
    except OSError:
        return False
    is_tracked = last is not None and number is not None and number <= last
    return is_tracked and _is_later(step.parent / TRACKER, written)


def tracked_step(folder: Path) -> int | None:
    """The last step that a trainer says it saved in a folder: the one from which it resumes.

    Raises:
        OSError: What the trainer says cannot be read.
    """
    try:
        with (folder / TRACKER).open("rb") as file:
            text = file.read(_TRACKER_BYTES)
    except FileNotFoundError:
        return None
    number = text.strip()
    # It is not written atomically, so that it may be found empty.
    return int(number) if re.fullmatch(rb"\d{1,18}", number) else None


def _is_later(marker: Path, written: int) -> bool:
    try:
        return FileStamp.of(marker).modified >= written
    except OSError:
        return False


def _is_state(checkpoint: Path) -> bool:
    """Whether the trainer's state is whole, which is written last."""
    try:
        return read_trainer_state(checkpoint).step is not None
    except (CheckpointError, OSError):
        return False


class Settling:
    """How long the files of each checkpoint have been the same.

    Args:
        seconds: How long they must be to count as complete.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Path, tuple[Listing, float]] = {}

    def is_settled(self, checkpoint: Path, listing: Listing) -> bool:
        """Whether a checkpoint had these files for long enough, as often as this was called."""
        now = time.monotonic()
        before, since = self._since.get(checkpoint, (None, now))
        if before != listing:
            since = now
        self._since[checkpoint] = listing, since
        return before == listing and now - since >= self._seconds

    def keep_only(self, checkpoints: Collection[Path]) -> None:
        """Forget the checkpoints that are gone."""
        self._since = {path: held for path, held in self._since.items() if path in checkpoints}
