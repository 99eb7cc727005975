#!/usr/bin/env python3
"""Train the papers' runs in miniature, store them as deltas, and write their tables.

    python tools/reproduce/reproduce.py OUT            # all of it, and the report
    python tools/reproduce/reproduce.py OUT --smoke    # in a minute, to see that it runs

What is in OUT already is kept: the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch

from evidence import Evidence
from figures import Figures
from plan import BASE_FLOAT32, NULL, Plan, Run, full, smoke
from training import make_base, shuffle, train
from writing import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["missing"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--smoke", "is_smoke", is_flag=True, help="Do little of everything.")
@click.option("--processes", default=2, show_default=True, help="Runs at a time.")
def main(out: Path, processes: int, *, is_smoke: bool) -> None:
    """Train the papers' runs in miniature, store them in OUT, and write OUT/report.md."""
    plan = smoke() if is_smoke else full()
    out.mkdir(parents=True, exist_ok=True)
    _require_same_plan(plan, out)
    start = time.monotonic()
    # Small as the model is, threads that wait for each other cost more than they bring.
    torch.set_num_threads(1)
    if not (out / BASE_FLOAT32).is_dir():
        make_base(plan, out)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        _do(pool, "trained", missing(plan.first(), out), partial(train, plan=plan, folder=out))
        nulls = [run for run in plan.first() if run.float32]
        unshuffled = [run for run in nulls if not (out / (run.name + NULL)).is_dir()]
        _do(pool, "shuffled", unshuffled, partial(_shuffle, folder=out))
        for run in plan.second():
            _make_mask(run, out)
        _do(pool, "trained", missing(plan.second(), out), partial(train, plan=plan, folder=out))
    write_report(Figures(Evidence(out), plan), out)
    click.echo(f"{out / 'report.md'}: {time.monotonic() - start:.0f} s", err=True)


def _require_same_plan(plan: Plan, out: Path) -> None:
    """Refuse to go on with what another plan began."""
    described = json.dumps(asdict(plan), indent=1, sort_keys=True) + "\n"
    kept = out / "plan.json"
    if kept.exists() and kept.read_text(encoding="utf-8") != described:
        message = f"{kept} is of another plan: choose another folder"
        raise click.ClickException(message)
    kept.write_text(described, encoding="utf-8")


def missing(runs: Iterable[Run], out: Path) -> list[Run]:
    """Runs of which not everything is stored. The last to be stored tells."""
    return [run for run in runs if not (out / run.last).is_dir()]


def _do(
    pool: ProcessPoolExecutor, done: str, runs: list[Run], function: Callable[[Run], None]
) -> None:
    for count, run in enumerate(pool.map(partial(_named, function), runs), 1):
        click.echo(f"{done} {count} of {len(runs)}: {run}", err=True)


def _named(function: Callable[[Run], None], run: Run) -> str:
    function(run)
    return run.name


def _shuffle(run: Run, folder: Path) -> None:
    shuffle(run.name, run.seed, folder)


def _make_mask(run: Run, out: Path) -> None:
    """Write the mask that a run trains by."""
    if (out / run.mask_file).exists():
        return
    (out / "masks").mkdir(exist_ok=True)
    subprocess.run(  # noqa: S603 - this project's own command
        [sys.executable, "-m", "rlsparse_store", *run.mask_command.split()[1:], "--quiet"],
        cwd=out,
        check=True,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
