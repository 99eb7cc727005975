"""``cp`` and ``cmp`` of the measured files, as familiar references."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inputs import Input

Command: TypeAlias = tuple[str | Path, ...]

REPEAT: Final = 3
"""Runs of each command; the best one counts."""


def measure_files(pair: Input, core: int) -> dict[str, float]:
    """Best times to copy the tuned file, and to compare it with the copy.

    The file is in the page cache; the commands run on the given core, in the folder of the input.
    """
    size = pair.tuned.stat().st_size
    with TemporaryDirectory(dir=pair.tuned.parent) as folder, _pinned(core):
        copy = Path(folder) / "copy"
        commands: dict[str, list[Command]] = {
            "cp_seconds": [("cp", pair.tuned, copy)],
            "cp_fsync_seconds": [("cp", pair.tuned, copy), ("sync", copy)],
            "cmp_seconds": [("cmp", pair.tuned, copy)],
        }
        best = {
            name: min(_seconds(steps) for _ in range(REPEAT)) for name, steps in commands.items()
        }
    return {"nbytes": size, **best}


def _seconds(steps: Sequence[Command]) -> float:
    started = time.perf_counter()
    for program, *arguments in steps:
        command = [shutil.which(program) or str(program), *map(str, arguments)]
        subprocess.run(command, check=True)  # noqa: S603 - programs of the system
    return time.perf_counter() - started


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Pin this process and its child processes to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
