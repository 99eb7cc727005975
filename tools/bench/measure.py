"""Measure one codec on one input, in this process, on one core; print JSON.

``compare.py`` runs this in a new process per codec and input, so that codecs affect neither each
other's peak memory nor each other's speed.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import numpy as np

from inputs import Input, load, special_values
from peers import CODECS
from peers.base import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.base import Codec, Tensors

Argument = TypeVar("Argument")
Result = TypeVar("Result")

MAX_SECONDS: Final = 20.0
"""Total time after which no further run starts."""

IDLE_SECONDS: Final = 0.05
"""A process that is idle for this long has no running thread."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The best of several runs.

    Attributes:
        seconds: Wall time of the fastest run.
        cpu_seconds: CPU time of the fastest run, with child processes.
        peak_bytes: Peak memory of all runs, beyond the memory in use before.
        runs: Number of runs.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    runs: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One codec on one input.

    Attributes:
        words: Words of the input, or of the part that was used.
        total_words: Words of the input.
        changed: Words that differ.
        nbytes: Size of the encoded data in bytes.
        encode: Times and memory of encoding.
        decode: Times and memory of decoding.
        memcpy_seconds: Fastest copy of the base, in the same process.
        input_bytes: Memory in use with the input loaded, before encoding.
        exact: Whether decoding is bit-exact.
        exact_awkward: Whether it is bit-exact for a small input of NaNs, zeros of both signs and
            infinities; ``None`` if the codec fails on it.
        awkward_error: The error of that failure.
    """

    words: int
    total_words: int
    changed: int
    nbytes: int
    encode: Timing
    decode: Timing
    memcpy_seconds: float
    input_bytes: int
    exact: bool
    exact_awkward: bool | None
    awkward_error: str


def measure(codec: Codec[Any], pair: Input, repeat: int) -> Measurement:
    """Measure a codec on an input."""
    exact_awkward, awkward_error = _check_special_values(codec)
    base, tuned = load(pair, codec.limit_words)
    codec.prepare(base, tuned)
    memcpy_before = _memcpy_seconds(base)
    in_use = _memory("VmRSS")
    coded, encode = _best(lambda _: codec.encode(base, tuned), lambda: None, repeat)

    def decoder_input() -> Tensors:
        return [words.copy() for words in base] if codec.in_place else base

    result, decode = _best(lambda words: codec.decode(words, coded.payload), decoder_input, repeat)
    return Measurement(
        words=_words(tuned),
        total_words=_words(load(pair, None)[1]) if codec.limit_words else _words(tuned),
        changed=_changed(base, tuned),
        nbytes=coded.nbytes,
        encode=encode,
        decode=decode,
        memcpy_seconds=min(memcpy_before, _memcpy_seconds(base)),
        input_bytes=in_use,
        exact=_equal(result, tuned),
        exact_awkward=exact_awkward,
        awkward_error=awkward_error,
    )


def _best(
    call: Callable[[Argument], Result], prepare: Callable[[], Argument], repeat: int
) -> tuple[Result, Timing]:
    """Call several times, with a new argument each time; the last result and the best times."""
    times: list[tuple[float, float]] = []
    in_use = 0
    while True:
        argument = prepare()
        _wait_until_idle()
        if not times:
            in_use = _reset_peak()
        cpu, started = _cpu_seconds(), time.perf_counter()
        result = call(argument)
        seconds = time.perf_counter() - started
        times.append((seconds, _cpu_seconds() - cpu))
        if len(times) == repeat or sum(wall for wall, _ in times) > MAX_SECONDS:
            peak = max(_memory("VmHWM") - in_use, _children_peak())
            return result, Timing(*min(times), peak, len(times))
        del result, argument


def _check_special_values(codec: Codec[Any]) -> tuple[bool | None, str]:
    """Whether a small pair of special values is bit-exact, or the error."""
    base, tuned = special_values()
    try:
        codec.prepare(base, tuned)
        coded = codec.encode(base, tuned)
        result = codec.decode([words.copy() for words in base], coded.payload)
    except Exception as error:  # noqa: BLE001 - any error of a peer is a result
        return None, f"{type(error).__name__}: {error}"
    return _equal(result, tuned), ""


def _memcpy_seconds(tensors: Tensors) -> float:
    """The fastest of several copies into memory that is already mapped."""
    copies = [words.copy() for words in tensors]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for copy, words in zip(copies, tensors, strict=True):
            np.copyto(copy, words)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait_until_idle() -> None:
    """Wait for threads that the last call left running."""
    while True:
        before = time.process_time()
        time.sleep(IDLE_SECONDS)
        if time.process_time() - before < IDLE_SECONDS / 10:
            return


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> int:
    """Release free memory and reset the peak; the memory in use."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _children_peak() -> int:
    """Peak memory of the child processes that the codec ran."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


def _words(tensors: Tensors) -> int:
    return sum(words.size for words in tensors)


def _changed(base: Tensors, tuned: Tensors) -> int:
    pairs = zip(base, tuned, strict=True)
    return sum(int(np.count_nonzero(before != after)) for before, after in pairs)


def _equal(result: Tensors, tuned: Tensors) -> bool:
    return all(map(np.array_equal, result, tuned)) and len(result) == len(tuned)


@click.command()
@click.option("--codec", "name", required=True)
@click.option("--base", type=click.Path(path_type=Path), required=True)
@click.option("--tuned", type=click.Path(path_type=Path), required=True)
@click.option("--repeat", type=int, required=True)
@click.option("--core", type=int, required=True)
def main(name: str, base: Path, tuned: Path, repeat: int, core: int) -> None:
    """Measure one codec on one input, and print JSON."""
    os.sched_setaffinity(0, {core})
    try:
        codec = CODECS[name]()
    except (ImportError, UnavailableError) as error:
        click.echo(json.dumps({"skipped": f"{type(error).__name__}: {error}"}))
        return
    measurement = measure(codec, Input(name, base, tuned), repeat)
    click.echo(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
