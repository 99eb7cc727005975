"""Time the kernels on chunks in memory: ``python tools/bench/kernels.py OUT``.

Generates missing pairs in ``OUT/inputs``. Encoding is everything from two arrays of words to
frames: comparing, choosing contexts, splitting and compressing. Decoding decompresses and patches
in place. Each pass covers all chunks, so that the words are not in the cache, and stands beside
memcpy of the same words in the same process. A time is the sum over chunks of the minimum or of the
median CPU time of each. Reading files, hashing and the encoder's proof are not included:
``commands.py`` times whole commands.

Then several threads share the chunks of a pair, and one does them all: the ratio of their wall
times, as the median of pairs of runs. Writes ``OUT/kernels.json`` and ``.md``.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
import numpy as np

from inputs import generated, load
from machine import describe_machine, describe_packages
from peers.ours import Ours
from rlsparse_store.kernels.dispatch import VARIABLE
from rlsparse_store.kernels.native import instruction_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers.base import Tensor
    from rlsparse_store.codec.chunk import EncodedChunk

Json: TypeAlias = dict[str, Any]

DENSITIES: Final = (0.005, 0.02, 0.09, 0.28, 0.5)
PIECE_WORDS: Final = 1 << 22
"""Words that memcpy copies per step: as many as a chunk usually has."""


def step_times(steps: Iterator[object]) -> list[float]:
    """Return the CPU seconds of each step, which exclude other processes on the same core."""
    times: list[float] = []
    start = thread_time()
    for _ in steps:
        times.append(thread_time() - start)
        start = thread_time()
    return times


def summed(runs: list[list[float]], words: int) -> tuple[float, float]:
    """Return the sums over steps of the minimum and of the median time, in nanoseconds per word."""
    seconds = np.array(runs)
    least, middle = seconds.min(0).sum(), np.median(seconds, 0).sum()
    return float(least / words * 1e9), float(middle / words * 1e9)


def measure(base: Tensor, tuned: Tensor, repeat: int) -> Json:
    """Return nanoseconds per word of memcpy, encoding and decoding, and the stored bits."""
    codec = Ours()
    place = np.empty_like(base)

    def copy() -> Iterator[object]:
        before, after = base.reshape(-1), place.reshape(-1)
        for start in range(0, base.size, PIECE_WORDS):
            after[start : start + PIECE_WORDS] = before[start : start + PIECE_WORDS]
            yield None

    copies, encodings, decodings = [], [], []
    chunks = list(codec.code(base, tuned))
    for _ in range(repeat):
        copies.append(step_times(copy()))
        decodings.append(step_times(codec.patch(place, chunks)))
        encodings.append(step_times(codec.code(base, tuned)))
    assert np.array_equal(place, tuned)  # noqa: S101 - a benchmark's own check
    found: Json = {}
    for name, runs in (("memcpy", copies), ("encode", encodings), ("decode", decodings)):
        found[name], found[f"{name}, median"] = summed(runs, base.size)
    for name in ("encode", "decode"):
        for kind in ("", ", median"):
            found[f"{name} x memcpy{kind}"] = found[f"memcpy{kind}"] / found[f"{name}{kind}"]
    found["bits"] = sum(len(chunk.stored) for chunk in chunks) * 8 / base.size
    return {name: round(value, 4) for name, value in found.items()}


def measure_threads(base: Tensor, tuned: Tensor, threads: int, repeat: int) -> Json:
    """Return how many times as fast several threads are as one, with a share of the rows each."""
    place = base.copy()
    rows = np.array_split(np.arange(len(base)), threads)
    shares = [slice(part[0], part[-1] + 1) for part in rows]
    codecs = [Ours() for _ in shares]
    chunks: list[list[EncodedChunk]] = [[] for _ in shares]

    def encode(number: int) -> None:
        part = shares[number]
        chunks[number] = list(codecs[number].code(base[part], tuned[part]))

    def decode(number: int) -> None:
        for _ in codecs[number].patch(place[shares[number]], chunks[number]):
            pass

    def seconds(mapped: Callable[..., Iterator[None]], work: Callable[[int], None]) -> float:
        place[:] = base
        start = perf_counter()
        list(mapped(work, range(threads)))
        return perf_counter() - start

    found: dict[str, list[float]] = {"encode": [], "decode": []}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            for name, work in (("encode", encode), ("decode", decode)):
                found[name].append(seconds(map, work) / seconds(pool.map, work))
    return {name: round(median(ratios), 2) for name, ratios in found.items()}


def tabulate(results: Json) -> str:
    """Render the results as Markdown."""
    names = list(results["densities"][0]["backends"])
    header = [f"{name}, {work}" for work in ("decode", "encode") for name in names]
    threads = results["threads"]
    lines = [
        "# Kernels",
        "",
        f"{results['machine']['processor']}. The speed of chunks in memory as a part of the speed",
        "of memcpy, on one core, zstd included: minima, and medians in parentheses.",
        "",
        f"| changed | {' | '.join(header)} |",
        f"|{' --- |' * (1 + len(header))}",
    ]
    for row in results["densities"]:
        cells = [
            f"{found[f'{work} x memcpy']:.3f} ({found[f'{work} x memcpy, median']:.3f})"
            for work in ("decode", "encode")
            for found in row["backends"].values()
        ]
        lines.append(f"| {row['density']:.2g} | {' | '.join(cells)} |")
    lines += [
        "",
        f"## {threads} threads",
        "",
        f"How many times as fast {threads} threads are as one, in memory, with {names[0]}.",
        "",
        "| changed | decode | encode |",
        "| --- | --- | --- |",
    ]
    for row in results["densities"]:
        found = row["threads"]
        lines.append(f"| {row['density']:.2g} | {found['decode']:.2f} | {found['encode']:.2f} |")
    return "\n".join([*lines, ""])


@click.command(context_settings={"show_default": True})
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--words", default=1 << 27, help="Words of the matrix.")
@click.option("--density", "densities", multiple=True, type=float, default=DENSITIES)
@click.option("--backend", "backends", multiple=True, default=instruction_sets())
@click.option("--repeat", default=5, help="Number of rounds.")
@click.option("--threads", default=2)
def main(
    *,
    out: Path,
    words: int,
    densities: tuple[float, ...],
    backends: tuple[str, ...],
    repeat: int,
    threads: int,
) -> None:
    """Time the kernels of each instruction set, and write a table to OUT."""
    results: Json = {
        "machine": describe_machine(),
        "packages": describe_packages(),
        "words": words,
        "threads": threads,
        "densities": [],
    }
    for density in densities:
        base, tuned = load(generated(out / "inputs", words, density), None)
        found = {}
        for name in backends:
            os.environ[VARIABLE] = name
            found[name] = measure(base[0], tuned[0], repeat)
        os.environ[VARIABLE] = backends[0]
        shared = measure_threads(base[0], tuned[0], threads, repeat)
        results["densities"].append({"density": density, "backends": found, "threads": shared})
        click.echo(json.dumps(results["densities"][-1]))
    (out / "kernels.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "kernels.md").write_text(tabulate(results), encoding="utf-8")


if __name__ == "__main__":
    main()
