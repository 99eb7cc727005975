"""Measure this project and its peers: ``python tools/bench/compare.py OUT``.

Generates missing inputs in ``OUT/inputs``, measures every codec on every input, and writes
``OUT/results.json``, ``.md``, ``.png`` and ``.svg``. ``README.md`` in this folder describes the
method.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from files import measure_files
from inputs import Input, generated, real_cases
from machine import describe_machine, describe_packages
from peers import CODECS
from plot import draw
from report import tabulate

if TYPE_CHECKING:
    from collections.abc import Sequence

MEASURE: Final = Path(__file__).resolve().with_name("measure.py")
DENSITIES: Final = (0.005, 0.02, 0.09, 0.28, 0.5)
ONE_THREAD: Final = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "RAYON", "NUMEXPR")
}


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the measurement.

    Attributes:
        repeat: Number of runs; the best one counts.
        core: Core that all codecs run on.
        timeout: Time limit per codec and input, in seconds.
    """

    repeat: int
    core: int
    timeout: float


def compare(inputs: Sequence[Input], codecs: Sequence[str], out: Path, options: Options) -> None:
    """Measure all codecs on all inputs, and save after each result."""
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "packages": describe_packages(),
        "options": asdict(options),
        "codecs": {name: _describe(name) for name in codecs},
        "skipped": {},
        "inputs": [],
    }
    for pair in inputs:
        rows: list[Any] = []
        files = measure_files(pair, options.core)
        results["inputs"].append({"name": pair.name, "files": files, "results": rows})
        for name in codecs:
            if name not in results["skipped"]:
                _measure_into(results, rows, name, pair, options)
                _write_json(out / "results.json", results)


def _describe(name: str) -> dict[str, Any]:
    codec = CODECS[name]
    return {"kind": str(codec.kind), "note": codec.note, "in_place": codec.in_place}


def _measure_into(
    results: dict[str, Any], rows: list[Any], name: str, pair: Input, options: Options
) -> None:
    """Add the result of a codec on an input to ``rows``, or its name to the skipped ones."""
    click.echo(f"{pair.name}: {name}", err=True)
    result = _run(name, pair, options)
    if "skipped" in result:
        results["skipped"][name] = result["skipped"]
    else:
        rows.append({"codec": name, **result})


def _run(name: str, pair: Input, options: Options) -> dict[str, Any]:
    """Measure in a new process; the result, or the reason of a failure."""
    command = [sys.executable, str(MEASURE), "--codec", name, "--base", str(pair.base)]
    command += ["--tuned", str(pair.tuned), "--repeat", str(options.repeat)]
    command += ["--core", str(options.core)]
    # In a new session, so that a timeout ends child processes too.
    with subprocess.Popen(  # noqa: S603 - this project's own script
        command,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=options.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return {"failed": f"timed out after {options.timeout:.0f} s"}
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return {"failed": last[0]}
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _render(out: Path) -> None:
    """Write the tables and the plot of the saved results."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (out / "results.md").write_text(tabulate(results), encoding="utf-8")
    draw(results, out / "results")


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--cases",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with base/ and one folder per real tuned model.",
)
@click.option(
    "--words", type=click.IntRange(1), default=1 << 27, help="Words of a generated tensor."
)
@click.option(
    "--density",
    "densities",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    default=DENSITIES,
    help="Density of a generated pair.",
)
@click.option("--only", type=click.Choice(list(CODECS)), multiple=True, help="Codecs to measure.")
@click.option(
    "--repeat", type=click.IntRange(1), default=3, help="Number of runs; the best one counts."
)
@click.option("--core", type=int, help="Core to measure on.  [default: the last]")
@click.option(
    "--timeout", type=float, default=600.0, help="Time limit per codec and input, in seconds."
)
@click.option("--render-only", is_flag=True, help="Render tables and plot of saved results only.")
def main(  # noqa: PLR0913 - click passes every parameter by name
    *,
    out: Path,
    cases: Path | None,
    words: int,
    densities: tuple[float, ...],
    only: tuple[str, ...],
    repeat: int,
    core: int | None,
    timeout: float,
    render_only: bool,
) -> None:
    """Measure this project and its peers, and write tables and a plot to OUT."""
    if not render_only:
        inputs = real_cases(cases) if cases else []
        inputs += [generated(out / "inputs", words, density) for density in densities]
        core = max(os.sched_getaffinity(0)) if core is None else core
        compare(inputs, only or tuple(CODECS), out, Options(repeat, core, timeout))
    _render(out)
    click.echo(f"wrote {out}/results.json, .md, .png and .svg")


if __name__ == "__main__":
    main()
