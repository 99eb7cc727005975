"""Time whole commands on files: ``python tools/bench/commands.py OUT``.

Generates missing pairs of checkpoints of several GiB in ``OUT/inputs``, and times ``cmp``, ``cp``
with and without fsync, and ``rlsparse encode``, ``apply`` and ``inspect`` on them. ``encode`` and
``apply`` run as they are, and without their fsync: what a disk takes is that of ``cp``, too. Each
round runs every command once, so that a temporary slowdown affects all of them; times and ratios
are medians over the rounds. Input files are in the page cache, and the memory that a command needs
was in use before. Writes ``OUT/commands.json`` and ``.md``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import click

from inputs import make_pair, nbytes_of
from machine import describe_machine, describe_packages
from warm import warm_files, warm_memory

Json: TypeAlias = dict[str, Any]
REFERENCES: Final = {
    "÷ cmp": "cmp of tuned and a copy",
    "÷ cp": "cp of tuned",
    "÷ cp and fsync": "cp of tuned, and fsync",
}
"""The columns of ratios, and the command that each divides by."""

MARGIN: Final = 1 << 28
"""Bytes of memory that a command may take beside its result."""

UNFLUSHED: Final = (
    "import os; os.fsync = lambda descriptor: None; from rlsparse_store.cli import main; main()"
)
"""A program that runs ``rlsparse`` without flushing files to the disk."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command to time.

    Attributes:
        name: Name in the table.
        steps: Command lines, run in sequence.
        reads: Folders to read into the page cache first.
        writes: Folder to remove before and after.
        needs: Bytes of memory that its results and the command itself may take.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    reads: tuple[Path, ...]
    writes: Path | None = None
    needs: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Times of one run.

    Attributes:
        seconds: Wall time.
        cpu_seconds: CPU time of all threads.
    """

    seconds: float
    cpu_seconds: float


def commands_for(pair: Path, scratch: Path, threads: tuple[int, ...]) -> list[Command]:
    """All commands on a pair: references, then ours. Copy and delta must be in ``scratch``."""
    base, tuned, copy, delta = pair / "base", pair / "tuned", scratch / "copy", scratch / "delta"
    out = scratch / "out"
    # Sync every file and then the folder, as encode and apply do.
    files = [str(out / path.name) for path in sorted(tuned.iterdir())]
    compared = [("cmp", str(path), str(copy / path.name)) for path in sorted(tuned.iterdir())]
    copying = ("cp", "-r", str(tuned), str(out))
    timed = [
        Command("cmp of tuned and a copy", tuple(compared), (tuned, copy)),
        Command("cp of tuned", (copying,), (tuned,), out),
        Command("cp of tuned, and fsync", (copying, ("sync", *files, str(out))), (tuned,), out),
        Command("inspect DELTA", (_rlsparse("inspect", delta),), (delta,)),
    ]
    for count in threads:
        suffix = f"{count} thread{'s' if count > 1 else ''}"
        options = ("--quiet", "--threads", str(count))
        encode = ("encode", base, tuned, "-o", out, *options)
        apply = ("apply", delta, "--base", base, "-o", out, *options)
        inspect = _rlsparse("inspect", base, tuned, *options)
        for name, arguments, reads in (("encode", encode, tuned), ("apply", apply, delta)):
            for state, step in (
                ("", _rlsparse(*arguments)),
                (", not flushed", _unflushed(*arguments)),
            ):
                timed.append(Command(f"{name}{state}, {suffix}", (step,), (base, reads), out))
        timed.append(Command(f"inspect BASE TUNED, {suffix}", (inspect,), (base, tuned)))
    return [replace(command, needs=nbytes_of(tuned) + MARGIN) for command in timed]


def _rlsparse(*arguments: str | Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "rlsparse_store", *map(str, arguments))


def _unflushed(*arguments: str | Path) -> tuple[str, ...]:
    return (sys.executable, "-c", UNFLUSHED, *map(str, arguments))


def run(command: Command) -> Run:
    """Run a command with its input files in the page cache, and with memory that was in use."""
    _remove(command.writes)
    for folder in command.reads:
        warm_files(folder)
    if command.needs:
        warm_memory(command.needs)
    before, started = os.times(), time.perf_counter()
    for step in command.steps:
        subprocess.run(step, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - programs of the system
    seconds, after = time.perf_counter() - started, os.times()
    _remove(command.writes)
    user = after.children_user - before.children_user
    return Run(seconds, user + after.children_system - before.children_system)


def time_pair(pair: Path, scratch: Path, threads: tuple[int, ...], repeat: int) -> list[Json]:
    """Median times of all commands on a pair, and medians of their ratios in each round."""
    _remove(scratch)
    scratch.mkdir(parents=True)
    shutil.copytree(pair / "tuned", scratch / "copy")
    encode = _rlsparse("encode", pair / "base", pair / "tuned", "-o", scratch / "delta", "--quiet")
    subprocess.run(encode, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - this project's own
    commands = commands_for(pair, scratch, threads)
    rounds = [{command.name: run(command) for command in commands} for _ in range(repeat)]
    _remove(scratch)
    return [_summary(command.name, rounds) for command in commands]


def _summary(name: str, rounds: list[dict[str, Run]]) -> Json:
    def relative_to(other: str) -> float:
        return median(times[name].seconds / times[other].seconds for times in rounds)

    command, _, threads = name.rpartition(", ")
    one_thread = f"{command}, 1 thread"
    has_fewer = one_thread in rounds[0] and threads != "1 thread"
    return {
        "command": name,
        "seconds": median(times[name].seconds for times in rounds),
        "cpu_seconds": median(times[name].cpu_seconds for times in rounds),
        "all_seconds": [times[name].seconds for times in rounds],
        **{column: relative_to(other) for column, other in REFERENCES.items()},
        "1 thread ÷": 1 / relative_to(one_thread) if has_fewer else None,
    }


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def tabulate(results: Json) -> str:
    """Render the results as Markdown."""
    machine = results["machine"]
    lines = [
        "# Whole commands",
        "",
        f"{machine['processor']}, {machine['cores']} cores. Medians of {results['repeat']} rounds.",
        "",
    ]
    columns = (*REFERENCES, "1 thread ÷")
    for pair in results["pairs"]:
        lines += [
            f"## {pair['nbytes'] / (1 << 30):.2f} GiB, {pair['density']:.0%} changed",
            "",
            f"| command | s | CPU s | GB/s | {' | '.join(columns)} |",
            f"|{' --- |' * (4 + len(columns))}",
        ]
        lines += [
            f"| {row['command']} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} "
            f"| {pair['nbytes'] / row['seconds'] / 1e9:.2f} "
            f"| {' | '.join(_ratio(row[column]) for column in columns)} |"
            for row in pair["runs"]
        ]
        lines.append("")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--gib", type=float, default=4.0, help="Size of one checkpoint in GiB.")
@click.option(
    "--density",
    "densities",
    type=float,
    multiple=True,
    default=(0.02, 0.09, 0.28, 0.5),
    help="Density of a pair.",
)
@click.option(
    "--threads", type=int, multiple=True, default=(1, 2), help="Number of threads of our commands."
)
@click.option("--repeat", type=click.IntRange(1), default=5, help="Number of rounds.")
def main(
    *,
    out: Path,
    gib: float,
    densities: tuple[float, ...],
    threads: tuple[int, ...],
    repeat: int,
) -> None:
    """Time whole commands on files, and write a table to OUT."""
    results: Json = {
        "machine": describe_machine(),
        "packages": describe_packages(),
        "repeat": repeat,
        "pairs": [],
    }
    for density in densities:
        folder = out / "inputs" / f"{gib:g}-gib-{density:g}"
        pair = make_pair(folder, ["--gib", f"{gib:g}"], density, shards=4)
        nbytes = nbytes_of(pair / "tuned")
        runs = time_pair(pair, out / "scratch", threads, repeat)
        results["pairs"].append({"density": density, "nbytes": nbytes, "runs": runs})
    text = json.dumps(results, indent=1) + "\n"
    (out / "commands.json").write_text(text, encoding="utf-8")
    (out / "commands.md").write_text(tabulate(results), encoding="utf-8")
    click.echo(f"wrote {out}/commands.json and commands.md")


if __name__ == "__main__":
    main()
