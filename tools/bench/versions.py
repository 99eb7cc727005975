"""Time two versions of this package in pairs: ``python tools/bench/versions.py OLD NEW OUT``.

OLD and NEW are the Python interpreters of two environments, each with a version installed. Every
round runs a command with both, one after the other, so that a temporary slowdown affects both; the
ratios are medians over the rounds. Inputs are generated pairs in ``OUT/inputs``: large tensors at
two densities, a hundred thousand small tensors, and one tiny tensor, whose time is that of starting
up. They are in the page cache. Writes ``OUT/versions.json`` and ``.md``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, TypeAlias

import click

from commands import Command, Run, run
from inputs import make_pair, nbytes_of
from machine import describe_machine

Json: TypeAlias = dict[str, Any]


class Case(NamedTuple):
    """A pair of checkpoints: name in the table, size for ``make_pair.py``, density and shards."""

    name: str
    size: tuple[str, ...]
    density: float
    shards: int


CASES: Final = (
    Case("large, 2 %", ("--gib", "1.5"), 0.02, 2),
    Case("large, 28 %", ("--gib", "1.5"), 0.28, 2),
    Case("100,000 tensors", ("--tensors", "100000"), 0.05, 4),
    Case("one tiny tensor", ("--single", "65536"), 0.02, 1),
)


def commands_for(python: str, pair: Path, delta: Path, threads: int) -> dict[str, Command]:
    """The commands of one version on a pair and the delta that it wrote."""
    base, tuned, out = pair / "base", pair / "tuned", delta.parent / "out"
    options = ("--quiet", "--threads", str(threads))
    program = (python, "-m", "rlsparse_store")
    encode = (*program, "encode", str(base), str(tuned), "-o", str(out), *options)
    apply = (*program, "apply", str(delta), "--base", str(base), "-o", str(out), *options)
    needs = 2 * nbytes_of(base)
    return {
        "encode": Command("encode", (encode,), (base, tuned), out, needs),
        "apply": Command("apply", (apply,), (base, delta), out, needs),
    }


def time_case(old: str, new: str, pair: Path, scratch: Path, threads: int, rounds: int) -> Json:
    """Run both versions of every command in pairs; medians of times and of ratios."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    deltas = [scratch / "delta", scratch / "delta-new"]
    for python, delta in zip((old, new), deltas, strict=True):
        folders = map(str, (pair / "base", pair / "tuned"))
        command = (python, "-m", "rlsparse_store", "encode", *folders, "-o", str(delta), "-q")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - this project's own
    # Each reads its own delta: the versions of their formats may differ.
    versions = [
        commands_for(python, pair, delta, threads)
        for python, delta in zip((old, new), deltas, strict=True)
    ]
    results: Json = {"same_bytes": _contents(deltas[0]) == _contents(deltas[1])}
    for name in versions[0]:
        times = [[run(version[name]) for version in versions] for _ in range(rounds)]
        results[name] = _summary(times)
    shutil.rmtree(scratch)
    return results


def _contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _summary(times: list[list[Run]]) -> Json:
    return {
        "old_seconds": median(old.seconds for old, _ in times),
        "new_seconds": median(new.seconds for _, new in times),
        "old_cpu_seconds": median(old.cpu_seconds for old, _ in times),
        "new_cpu_seconds": median(new.cpu_seconds for _, new in times),
        "ratio": median(old.seconds / new.seconds for old, new in times),
        "cpu_ratio": median(old.cpu_seconds / new.cpu_seconds for old, new in times),
    }


def tabulate(results: Json) -> str:
    """Render the results as Markdown."""
    machine = results["machine"]
    setting = (
        f"{machine['processor']}, {machine['cores']} cores, commands on {results['threads']} "
        f"threads. Medians of {results['rounds']} pairs of runs."
    )
    lines = [
        "# Two versions",
        "",
        setting,
        "",
        "| pair | command | old, s | new, s | old ÷ new | CPU: old, s | new, s | old ÷ new |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, commands in results["cases"].items():
        lines += [
            f"| {case} | {name} | {row['old_seconds']:.2f} | {row['new_seconds']:.2f} "
            f"| {row['ratio']:.2f} | {row['old_cpu_seconds']:.2f} | {row['new_cpu_seconds']:.2f} "
            f"| {row['cpu_ratio']:.2f} |"
            for name, row in commands.items()
            if name != "same_bytes"
        ]
    differing = [case for case, row in results["cases"].items() if not row["same_bytes"]]
    lines += ["", f"Deltas that differ: {', '.join(differing) or 'none'}.", ""]
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.argument("old")
@click.argument("new")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--threads", type=int, default=1, help="Threads of the commands.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Pairs of runs.")
@click.option("--only", multiple=True, help="Names of cases to run; all by default.")
def main(
    *, old: str, new: str, out: Path, threads: int, rounds: int, only: tuple[str, ...]
) -> None:
    """Time two versions in pairs, and write a table to OUT."""
    results: Json = {
        "machine": describe_machine(),
        "threads": threads,
        "rounds": rounds,
        "cases": {},
    }
    for case in CASES:
        if only and case.name not in only:
            continue
        folder = out / "inputs" / "-".join((*case.size, f"{case.density:g}")).lstrip("-")
        pair = make_pair(folder, case.size, case.density, case.shards)
        results["cases"][case.name] = time_case(old, new, pair, out / "scratch", threads, rounds)
        click.echo(f"{case.name}: done", err=True)
    text = json.dumps(results, indent=1) + "\n"
    (out / "versions.json").write_text(text, encoding="utf-8")
    (out / "versions.md").write_text(tabulate(results), encoding="utf-8")
    click.echo(f"wrote {out}/versions.json and versions.md")


if __name__ == "__main__":
    main()
