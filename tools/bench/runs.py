#!/usr/bin/env python3
"""CPU seconds of reading a run of many entries, and of adding one more to it.

    python tools/bench/runs.py WORK [--entries 1000]

The entries are copies of one small delta, which the index lists as any others. Each command runs in
a process of its own; the best of three counts.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

from rlsparse_store.delta import encode_run, repair_run

__all__ = ["cpu_seconds"]

REPEATS = 3


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--entries", default=1000, show_default=True)
def main(work: Path, entries: int) -> None:
    """Measure a run of many entries in WORK, which must not exist."""
    work.mkdir(parents=True)
    base = _save(work / "base", 0)
    encode_run(base, [_save(work / "checkpoint-0", 1)], work / "run")
    for number in range(1, entries):
        copy = work / "run" / f"checkpoint-{number}"
        shutil.copytree(work / "run" / "checkpoint-0", copy)
        # The name is the folder's.
        (copy / "rlsparse" / "entry.json").unlink()
    repair_run(work / "run")
    click.echo(
        f"inspect of {entries:,} entries: {_best('inspect', work / 'run'):.2f} s of CPU time"
    )
    alone, more = [], []
    for number in range(REPEATS):
        tuned = _save(work / f"more-{number}", 2 + number)
        encode = ("encode", base, tuned, "--run", "-q", "-o")
        alone.append(cpu_seconds(*encode, work / f"alone-{number}"))
        more.append(cpu_seconds(*encode, work / "run"))
    click.echo(f"encode into an empty run: {min(alone):.2f} s; into this one: {min(more):.2f} s")


def cpu_seconds(*arguments: str | Path) -> float:
    """CPU seconds of a command of this package."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "rlsparse_store", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _best(*arguments: str | Path) -> float:
    return min(cpu_seconds(*arguments) for _ in range(REPEATS))


def _save(folder: Path, changes: int) -> Path:
    """A checkpoint of 146 small tensors, of which a few words differ from the base's."""
    words = np.random.default_rng(0).integers(0x3C00, 0x3E00, (146, 4096), np.uint16)
    words[:, :changes] ^= 1
    header: dict[str, object] = {}
    for number in range(len(words)):
        start = number * words.shape[1] * 2
        offsets = [start, start + words.shape[1] * 2]
        name = f"model.layers.{number // 7}.weight_{number % 7}"
        header[name] = {"dtype": "BF16", "shape": [64, 64], "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    content = len(text).to_bytes(8, "little") + text + words.tobytes()
    (folder / "model.safetensors").write_bytes(content)
    return folder


if __name__ == "__main__":
    main()
