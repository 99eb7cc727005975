#!/usr/bin/env python3
"""Train small versions of the papers' runs, store them as deltas, and write the papers' tables.

    python tools/reproduce/reproduce.py OUT            # all runs and the report
    python tools/reproduce/reproduce.py OUT --smoke    # a test run of about a minute

Finished runs in OUT are kept, so that the same command resumes after an interruption.
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
@click.option("--smoke", "is_smoke", is_flag=True, help="Train a few steps only, as a test.")
@click.option("--processes", default=2, show_default=True, help="Number of parallel runs.")
def main(out: Path, processes: int, *, is_smoke: bool) -> None:
    """Train small versions of the papers' runs in OUT, and write OUT/report.md."""
    plan = smoke() if is_smoke else full()
    out.mkdir(parents=True, exist_ok=True)
    _require_same_plan(plan, out)
    start = time.monotonic()
    # For so small a model, several threads are slower than one.
    torch.set_num_threads(1)
    if not (out / BASE_FLOAT32).is_dir():
        make_base(plan, out)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        _run_all(pool, "trained", missing(plan.first(), out), partial(train, plan=plan, folder=out))
        nulls = [run for run in plan.first() if run.float32]
        unshuffled = [run for run in nulls if not (out / (run.name + NULL)).is_dir()]
        _run_all(pool, "shuffled", unshuffled, partial(_shuffle, folder=out))
        for run in plan.second():
            _make_mask(run, out)
        _run_all(
            pool, "trained", missing(plan.second(), out), partial(train, plan=plan, folder=out)
        )
    write_report(Figures(Evidence(out), plan), out)
    click.echo(f"{out / 'report.md'}: {time.monotonic() - start:.0f} s", err=True)


def _require_same_plan(plan: Plan, out: Path) -> None:
    """Refuse to resume the runs of another plan."""
    text = json.dumps(asdict(plan), indent=1, sort_keys=True) + "\n"
    path = out / "plan.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        message = f"{path} is of another plan; choose another folder"
        raise click.ClickException(message)
    path.write_text(text, encoding="utf-8")


def missing(runs: Iterable[Run], out: Path) -> list[Run]:
    """The unfinished runs: those whose last delta does not exist."""
    return [run for run in runs if not (out / run.last).is_dir()]


def _run_all(
    pool: ProcessPoolExecutor, verb: str, runs: list[Run], function: Callable[[Run], None]
) -> None:
    """Apply a function to runs in parallel, and print a line after each."""
    for count, name in enumerate(pool.map(partial(_apply, function), runs), 1):
        click.echo(f"{verb} {count} of {len(runs)}: {name}", err=True)


def _apply(function: Callable[[Run], None], run: Run) -> str:
    function(run)
    return run.name


def _shuffle(run: Run, folder: Path) -> None:
    shuffle(run.name, run.seed, folder)


def _make_mask(run: Run, out: Path) -> None:
    """Write the mask of a run."""
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
