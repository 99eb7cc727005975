#!/usr/bin/env python3
"""What keyframes would save on a run: bytes of the run, and the time of applying a checkpoint.

    python tools/reproduce/keyframes.py RUN        # RUN/base and RUN/checkpoint-5 … of long_runs.py

A keyframe is a delta of the base; a step is a delta of the result of the last keyframe before it.
The sizes are those of real deltas of every pair. Beside schedules that a writer can follow, the
table has the best choice of keyframes for this run, found with all sizes known.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import torch

from long_runs import SAVED_EVERY, STEPS
from rlsparse_store.delta import encode_delta, measure_pair, open_delta
from rlsparse_store.torch import patch_

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["best_keyframes", "by_changes", "every", "run_bytes"]

Table = dict[tuple[int, int], int]
"""A number for each pair of checkpoints, counted from 1, where 0 is the base."""

PERIODS: Final = (5, 10, 20)
REPEATS: Final = 5


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(run: Path, *, as_json: bool) -> None:
    """Measure what keyframes would save on RUN."""
    count = STEPS // SAVED_EVERY
    nbytes, changed = _measure(run, count)
    against_base = run_bytes([], nbytes, count)
    schedules = {"against the base": list[int]()}
    schedules |= {f"a keyframe every {period}": every(period, count) for period in PERIODS}
    rules = (0.5, 0.7, 0.9)
    schedules |= {f"by changes, {share:.0%}": by_changes(share, changed, count) for share in rules}
    schedules["the best choice"] = best_keyframes(nbytes, count)
    chain = sum(nbytes[i - 1, i] for i in range(1, count + 1))
    rows = [
        {
            "schedule": label,
            "keyframes": keyframes,
            "bytes": run_bytes(keyframes, nbytes, count),
            "share": run_bytes(keyframes, nbytes, count) / against_base,
        }
        for label, keyframes in schedules.items()
    ]
    rows.append(
        {"schedule": "a chain", "keyframes": [], "bytes": chain, "share": chain / against_base}
    )
    middle = count // 2 + 1
    one, two = _apply_seconds(run, middle, count)
    report = {
        "changed": [changed[0, i] for i in range(1, count + 1)],
        "moved": [changed[i - 1, i] for i in range(1, count + 1)],
        "schedules": rows,
        "apply_seconds": {"base to step": one, "base to keyframe to step": two},
    }
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"changed from the base: {report['changed']}")
    click.echo(f"changed from the checkpoint before: {report['moved']}")
    for row in rows:
        click.echo(
            f"{row['schedule']:24} {row['bytes']:>12,} {row['share']:7.1%} {row['keyframes']}"
        )
    click.echo(
        f"apply {_name(count)}: {one:.4f} s from the base, {two:.4f} s by {_name(middle)}: "
        f"{two / one:.2f} times"
    )


def run_bytes(keyframes: list[int], nbytes: Table, count: int) -> int:
    """Bytes of a run in which some checkpoints are keyframes.

    Without keyframes, and before the first one, checkpoints are deltas of the base.
    """
    total, last = 0, 0
    for i in range(1, count + 1):
        total += nbytes[0 if i in keyframes else last, i]
        last = i if i in keyframes else last
    return total


def every(period: int, count: int) -> list[int]:
    """Every so many saved checkpoints, a keyframe, from the first one on."""
    return list(range(1, count + 1, period))


def by_changes(share: float, changed: Table, count: int) -> list[int]:
    """A keyframe where a step from the last one would change more than a share of what it has."""
    keyframes = [1]
    for i in range(2, count + 1):
        if changed[keyframes[-1], i] > share * changed[0, i]:
            keyframes.append(i)
    return keyframes


def best_keyframes(nbytes: Table, count: int) -> list[int]:
    """The keyframes with the fewest bytes of the run, all of which are known."""
    best: dict[int, tuple[int, list[int]]] = {count + 1: (0, [])}
    for first in range(count, -1, -1):
        # A keyframe at `first` (0: the base itself), and steps from it until the next one.
        choices = []
        for end in range(first + 1, count + 2):
            steps = sum(nbytes[first, i] for i in range(first + 1, end))
            later, keyframes = best[end]
            own = nbytes[0, first] if first else 0
            choices.append((own + steps + later, [first, *keyframes] if first else keyframes))
        best[first] = min(choices)
    return best[0][1]


def _measure(run: Path, count: int) -> tuple[Table, Table]:
    """Bytes and changed elements of the delta of every pair."""
    nbytes, changed = {}, {}
    for before in range(count):
        for after in range(before + 1, count + 1):
            report = measure_pair(run / _name(before), run / _name(after), threads=1)
            nbytes[before, after], changed[before, after] = report.delta_bytes, report.changed
    return nbytes, changed


def _name(number: int) -> str:
    return f"checkpoint-{number * SAVED_EVERY}" if number else "base"


def _apply_seconds(run: Path, keyframe: int, step: int) -> tuple[float, float]:
    """Seconds of applying a step to the base in memory, directly and over a keyframe.

    The better one of several times each, in turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pairs = {"direct": (0, step), "keyframe": (0, keyframe), "step": (keyframe, step)}
        for name, (before, after) in pairs.items():
            encode_delta(run / _name(before), run / _name(after), work / name)
        with open_delta(work / "direct", base=run / "base") as tuned:
            names = list(tuned.keys())
        direct, over = [], []
        for _ in range(REPEATS):
            direct.append(_seconds(_patches(run, names, [work / "direct"])))
            over.append(_seconds(_patches(run, names, [work / "keyframe", work / "step"])))
    return min(direct), min(over)


def _patches(run: Path, names: list[str], deltas: list[Path]) -> Callable[[], None]:
    weights = _load(run / "base")
    state = {name: weights[name] for name in names}

    def patch() -> None:
        for delta in deltas:
            patch_(state, delta, threads=1)

    return patch


def _load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - a reader of its own

    return load_file(folder / "model.safetensors")


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
