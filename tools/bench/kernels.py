#!/usr/bin/env python3
"""Time the kernels on chunks in memory, against memcpy of the same words in the same process.

    python tools/bench/kernels.py --words 33554432 --density 0.02 --density 0.28 --backend avx2

Encoding is everything from two arrays of words to frames: comparing, choosing contexts, splitting
and compressing. Decoding decompresses and patches in place. Each pass covers all chunks, so that
the words are not in the cache. A figure is the sum over chunks of the minimum or the median CPU
time of each; ``x memcpy`` is the time of memcpy divided by the minimum. Reading files, hashing and
the encoder's proof are not included: ``commands.py`` times whole commands.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, Final

import click
import numpy as np

from inputs import generated, load
from peers.ours import Ours
from rlsparse_store.kernels.dispatch import VARIABLE
from rlsparse_store.kernels.native import instruction_sets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers.base import Tensor

DENSITIES: Final = (0.005, 0.02, 0.047, 0.09, 0.28, 0.5)
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
    least, median = seconds.min(0).sum(), np.median(seconds, 0).sum()
    return float(least / words * 1e9), float(median / words * 1e9)


def measure(base: Tensor, tuned: Tensor, repeat: int) -> dict[str, float]:
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
    found: dict[str, float] = {}
    for name, runs in (("memcpy", copies), ("encode", encodings), ("decode", decodings)):
        found[name], found[f"{name} median"] = summed(runs, base.size)
    for name in ("encode", "decode"):
        found[f"{name} x memcpy"] = found["memcpy"] / found[name]
    found["bits"] = sum(len(chunk.stored) for chunk in chunks) * 8 / base.size
    return {name: round(value, 4) for name, value in found.items()}


@click.command()
@click.option("--words", default=1 << 25, show_default=True, help="Words of the matrix.")
@click.option("--density", multiple=True, type=float, default=DENSITIES, show_default=True)
@click.option("--backend", multiple=True, default=instruction_sets(), show_default=True)
@click.option("--repeat", default=7, show_default=True)
@click.option("--pairs", type=click.Path(path_type=Path), help="Folder to keep the inputs in.")
def main(
    words: int,
    density: tuple[float, ...],
    backend: tuple[str, ...],
    repeat: int,
    pairs: Path | None,
) -> None:
    """Print one line of JSON for each density and backend."""
    with tempfile.TemporaryDirectory() as scratch:
        for share in density:
            pair = generated(pairs or Path(scratch), words, share)
            base, tuned = load(pair, None)
            for name in backend:
                os.environ[VARIABLE] = name
                found = measure(base[0], tuned[0], repeat)
                click.echo(json.dumps({"density": share, "backend": name, **found}))


if __name__ == "__main__":
    main()
