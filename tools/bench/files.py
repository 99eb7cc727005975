"""``cp`` and ``cmp`` of the measured files: the speed limits that users know."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inputs import Input

Command: TypeAlias = tuple[str | Path, ...]


def measure_files(pair: Input, core: int, repeat: int = 3) -> dict[str, float]:
    """Seconds of copying the tuned file and of comparing it with that copy, best of several.

    The file is in the page cache; both commands run on the given core, beside the inputs.
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
            name: min(_seconds(steps) for _ in range(repeat)) for name, steps in commands.items()
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
    """Run this process, and the commands it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
