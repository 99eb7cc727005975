#!/usr/bin/env python3
"""Cut the power of a model of a file system at every moment of every command.

    python tools/trust/cuts.py --seconds 60
    python tools/trust/cuts.py --seconds 600 --command run

A round records one command: what it writes, names and flushes, and when it reports its result. Then
the power is cut before each recorded call, and what was not flushed is missing in part: none of it,
all of it, and a sample of everything between (``crash_model.py``). After each cut, what is there
under final names is the old state or the new one, and whole if it was reported. After some, the
same command runs again, succeeds and leaves what an undisturbed one leaves.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from crash_model import Recording, read_record, sampled
from interposer import CHANGES, Action, Plan
from result import RESULTS, Fault, Result
from rig import add_found, open_bench, rig_folder, without_numbers
from subjects import COMMANDS, HOME, SUBJECTS, normal, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from subjects import Bench, Tree

SAMPLE: Final = 30
"""Sets of missing changes per moment."""

RERUN: Final = 40
"""Of so many cuts, the command runs again after one."""


def record(bench: Bench) -> Recording:
    """Record an undisturbed run."""
    bench.reset()
    recording = Recording.before(bench.work)
    log = os.memfd_create("record")
    outcome = bench.run(Plan(action=Action.RECORD, ops=CHANGES, log=log))
    with os.fdopen(log, "rb") as file:
        file.seek(0)
        read_record(file.read(), recording)
    if outcome.code:
        msg = f"{bench.subject.name} fails undisturbed: {outcome.err}"
        raise RuntimeError(msg)
    recording.acknowledged = recording.acknowledged or recording.length
    return recording


def cuts(bench: Bench, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Cut before each call in any order.

    Yields:
        The moment of the cut, and what is wrong after it.
    """
    recording = record(bench)
    final = recording.state(recording.length + 1, set(), has_lengths=True)
    if visible(_tree(final)) != visible(bench.done):
        msg = f"{bench.subject.name}: the record does not give what was written"
        raise RuntimeError(msg)
    events = list(range(1, recording.length + 2))
    rng.shuffle(events)
    for event in events:
        is_done = event > recording.acknowledged
        for number, missing in enumerate(sampled(recording, event, rng, SAMPLE)):
            state = recording.state(event, missing, has_lengths=rng.random() < 0.5)
            wrong = bench.judge_tree(_tree(state), is_done=is_done)
            if not wrong and rng.randrange(RERUN) == 0:
                _restore(bench, state)
                wrong = bench.judge_rerun()
            yield f"event {event} of {recording.length}, set {number}", wrong


def _tree(state: dict[str, bytes]) -> Tree:
    """A state as the oracle reads it."""
    found = {path: data for path, data in state.items() if not path.startswith(f"{HOME}/")}
    return {path: normal(path, data) for path, data in found.items()}


def _restore(bench: Bench, state: dict[str, bytes]) -> None:
    """Make the work folder what it is after a cut."""
    bench.reset()
    for path in bench.work.iterdir():
        if path.name != HOME:
            shutil.rmtree(path)
    for name, data in sorted(state.items()):
        if name.startswith(f"{HOME}/"):
            continue
        if name.endswith("/"):
            (bench.work / name).mkdir(parents=True, exist_ok=True)
        else:
            (bench.work / name).write_bytes(data)
    # A file keeps its time, whatever its name in its folder is.
    kept = {_identity(path, bench.kept): path for path in bench.kept.rglob("*") if path.is_file()}
    for path in bench.work.rglob("*"):
        if path.is_file() and _identity(path, bench.work) in kept:
            shutil.copystat(kept[_identity(path, bench.work)], path)


def _identity(path: Path, root: Path) -> tuple[Path, bytes]:
    return path.parent.relative_to(root), path.read_bytes()


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long to go on.")
@click.option("--command", type=click.Choice([*SUBJECTS]), help="Only this command.")
@click.option("--root", type=Path, help="Folder for the trials.  [default: in memory]")
@click.option("--results", type=Path, default=RESULTS, help="Folder of the results.")
def main(seconds: float, command: str | None, root: Path | None, results: Path) -> None:
    """Cut the power of a model of a file system at every moment of every command."""
    with rig_folder(root) as folder:
        result = Result.read("cuts", results)
        result.describe(
            "The power of a model of a POSIX file system is cut before each call of a command that "
            "changes it, and any part of what was not flushed is missing. A fault is a torn "
            "result, a lost one that was reported, or litter or a failure of the next command.",
            {f"cuts: {name}": 1000 for name in COMMANDS},
        )
        end = time.monotonic() + seconds
        for seed in result.seeds(seconds):
            name = command or COMMANDS[seed % len(COMMANDS)]
            bench = open_bench(folder, name)
            counts: Counter[str] = Counter({"cuts": 0})
            faults: dict[str, Fault] = {}
            for place, wrong in cuts(bench, random.Random(seed)):  # noqa: S311 - repeatable
                counts["cuts"] += 1
                counts[f"cuts: {name}"] += 1
                if wrong:
                    what = without_numbers(f"{name}: {wrong}")
                    faults.setdefault(what, Fault(what, f"--command {name}, seed {seed}, {place}"))
                if time.monotonic() > end:
                    break
            add_found(result, counts, faults)
        click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()
