"""Time loading a model: ``python tools/bench/loading.py OUT``.

Generates missing pairs of a Llama of about 1.5 GB in ``OUT/inputs``, and loads them in new
processes: the tuned checkpoint with ``from_pretrained``, and base and delta with ``from_delta``.
Each is also timed until every weight was read once, since ``from_pretrained`` only maps the files.
Then one process switches a loaded base between two deltas. Rounds alternate all measurements, with
files in the page cache and as much memory as they need in use before. Writes ``OUT/loading.json``
and ``.md``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from inputs import make_pair, nbytes_of
from machine import describe_machine, describe_packages
from warm import warm_files, warm_memory

Json: TypeAlias = dict[str, Any]
SWITCHED: Final = (0.05, 0.051)
"""Densities of the two deltas to switch between."""

# Each program runs in a new process and prints one line of JSON. ru_maxrss is in KiB on Linux.
_IMPORTS: Final = """
import json, resource, sys, time
begun = time.perf_counter()
import torch
import transformers
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
"""
_MEASURE: Final = """
def touch(model):
    for parameter in model.parameters():
        parameter.detach().view(-1).view(torch.int16).amax()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
result = {"import_peak": peak()}
# The first load includes the imports, of torch and transformers and of the model's code.
for which, start in (("first", begun), ("again", None)):
    start = start or time.perf_counter()
    model = load()
    result[which] = time.perf_counter() - start
    touch(model)
    result[which + " until read"] = time.perf_counter() - start
    result.setdefault("peak", peak())
    del model
print(json.dumps(result))
"""
FULL: Final = f"""{_IMPORTS}
def load():
    return transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
{_MEASURE}"""
DELTA: Final = f"""{_IMPORTS}
from rlsparse_store import from_delta
def load():
    return from_delta(sys.argv[1], sys.argv[2])
{_MEASURE}"""
SWITCH: Final = """
import json, statistics, sys, time
import transformers
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
from rlsparse_store import from_delta
from rlsparse_store.torch import DeltaSwitch
base, first, second = sys.argv[1:]
def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result
reloads = [timed(from_delta, base, first)[0] for _ in range(3)]
model = transformers.AutoModelForCausalLM.from_pretrained(base)
switch = DeltaSwitch(model)
visits = [timed(switch.to, place)[0] for place in (first, second)]
moves = [timed(switch.to, place)[0] for place in (first, second) * 4]
print(json.dumps({"reload": statistics.median(reloads), "first visits": visits,
                  "move": statistics.median(moves)}))
"""


def run(program: str, *arguments: Path) -> Json:
    """Run a program in a new process; its JSON output.

    Its files are in the page cache, and memory for twice the largest folder was in use before.
    """
    for folder in arguments:
        warm_files(folder)
    warm_memory(2 * max(map(nbytes_of, arguments)))
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this project's own
    result: Json = json.loads(process.stdout)
    return result


def encode(pair: Path) -> Path:
    """The delta of a pair, encoded if it does not exist."""
    delta = pair / "delta"
    if not delta.exists():
        command = [sys.executable, "-m", "rlsparse_store", "encode", "-q"]
        subprocess.run(  # noqa: S603 - this project's own
            [*command, str(pair / "base"), str(pair / "tuned"), "-o", str(delta)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return delta


def time_loading(pair: Path, repeat: int) -> Json:
    """Median times to load a pair, as a full checkpoint and as base and delta."""
    delta = encode(pair)
    nbytes = sum(path.stat().st_size for path in (pair / "tuned").glob("*.safetensors"))
    methods = {"full": (FULL, [pair / "tuned"]), "delta": (DELTA, [pair / "base", delta])}
    rounds = [
        {method: run(program, *paths) for method, (program, paths) in methods.items()}
        for _ in range(repeat)
    ]
    result: Json = {"bytes": nbytes}
    for method in methods:
        keys = rounds[0][method]
        result[method] = {key: statistics.median(r[method][key] for r in rounds) for key in keys}
    return result


def tabulate(results: Json) -> str:
    """Render the results as Markdown."""
    lines = [
        "# Loading a model of 1.5 GB",
        "",
        "`from_delta` relative to `from_pretrained` of the full tuned checkpoint, medians of new,",
        "alternating processes, files in the page cache, memory in use before. *Process*: from the",
        "start of the process, with imports. *Load*: a second load in the same process. *Read*:",
        "until every weight was read once, since `from_pretrained` only maps the file.",
        "",
        "| changed | process ÷ full | process, read | load | load, read | peak ÷ model | full |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for density, times in results["loading"].items():
        full, delta = times["full"], times["delta"]
        keys = ("first", "first until read", "again", "again until read")
        ratios = [f"{delta[key] / full[key]:.2f}" for key in keys]
        peaks = [f"{method['peak'] / times['bytes']:.2f}" for method in (delta, full)]
        lines.append(f"| {float(density):.0%} | {' | '.join(ratios + peaks)} |")
    switch = results["switch"]
    fresh = results["loading"][min(results["loading"])]["delta"]["first"]
    bare = f"{results['import_peak'] / 1e6:.0f} MB"
    lines += [
        "",
        f"Peak memory is that of the process, of which Python and torch take {bare}.",
        "",
        "## Switching between two deltas of 5 %",
        "",
        "| `DeltaSwitch.to` | ÷ `from_delta` again | ÷ `from_delta` in a fresh process |",
        "| --- | --- | --- |",
    ]
    times = {
        "to the first delta, from a base mapped from its file": switch["first visits"][0],
        "to the second delta": switch["first visits"][1],
        "between the two, later": switch["move"],
    }
    lines += [
        f"| {name} | {seconds / switch['reload']:.2f} | {seconds / fresh:.2f} |"
        for name, seconds in times.items()
    ]
    return "\n".join([*lines, ""])


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--gib", type=float, default=1.4, help="Size of the model in GiB.")
@click.option(
    "--density", type=float, multiple=True, default=(0.02, 0.20), help="Density of a delta to load."
)
@click.option("--repeat", type=int, default=5, help="Number of rounds.")
def main(out: Path, gib: float, density: tuple[float, ...], repeat: int) -> None:
    """Time loading from base and delta, and loading the full checkpoint."""
    inputs = out / "inputs"
    pairs = {
        d: make_pair(inputs / f"llama-{gib:g}-gib-{d:g}", ["--gib", f"{gib:g}"], d, shards=2)
        for d in {*density, *SWITCHED}
    }
    loading = {f"{d:g}": time_loading(pairs[d], repeat) for d in density}
    deltas = [encode(pairs[d]) for d in SWITCHED]
    results: Json = {
        "machine": describe_machine(),
        "packages": describe_packages(),
        "import_peak": loading[f"{density[0]:g}"]["full"]["import_peak"],
        "loading": loading,
        "switch": run(SWITCH, pairs[SWITCHED[0]] / "base", *deltas),
    }
    (out / "loading.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "loading.md").write_text(tabulate(results))
    click.echo(tabulate(results))


if __name__ == "__main__":
    main()
