"""Measure one codec on one input, in this process, on one core; print JSON.

``compare.py`` runs this in a fresh process for each pair of codec and input, so that the peak of
memory is the codec's own and nothing one codec leaves behind slows down another.
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

from inputs import Input, awkward, load
from peers import CODECS
from peers.base import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.base import Codec, Tensors

Given = TypeVar("Given")
Result = TypeVar("Result")

ENOUGH_SECONDS: Final = 20.0
"""Repeating stops here, if not before."""

QUIET_SECONDS: Final = 0.05
"""A process that used next to no processor for so long has no thread still at work."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The best of several runs.

    Attributes:
        seconds: Wall time of the fastest run.
        cpu_seconds: Processor time of the fastest run, of this process and its children.
        peak_bytes: Most memory beyond what was in use before, over all runs.
        runs: How many there were.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    runs: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One codec on one input.

    Attributes:
        words: Words of the input, or of the slice that was used.
        total_words: Words of the input.
        changed: Words that differ.
        nbytes: Bytes stored.
        encode: Of encoding.
        decode: Of decoding.
        memcpy_seconds: The fastest copy of the base, in the same process.
        input_bytes: Memory in use with the input loaded, before encoding.
        exact: All words came back, bit for bit.
        exact_awkward: The same for a small input of NaNs, zeros of both signs and infinities;
            ``None`` with the reason in ``awkward_error`` if the codec failed on it.
        awkward_error: How it failed.
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
    exact_awkward, awkward_error = _round_trips_awkward(codec)
    base, tuned = load(pair, codec.limit_words)
    codec.prepare(base, tuned)
    copying = _memcpy_seconds(base)
    in_use = _memory("VmRSS")
    coded, encode = _best(lambda _: codec.encode(base, tuned), lambda: None, repeat)

    def private() -> Tensors:
        return [words.copy() for words in base] if codec.in_place else base

    result, decode = _best(lambda given: codec.decode(given, coded.payload), private, repeat)
    return Measurement(
        words=_words(tuned),
        total_words=_words(load(pair, None)[1]) if codec.limit_words else _words(tuned),
        changed=_changed(base, tuned),
        nbytes=coded.nbytes,
        encode=encode,
        decode=decode,
        memcpy_seconds=min(copying, _memcpy_seconds(base)),
        input_bytes=in_use,
        exact=_equal(result, tuned),
        exact_awkward=exact_awkward,
        awkward_error=awkward_error,
    )


def _best(
    call: Callable[[Given], Result], prepare: Callable[[], Given], repeat: int
) -> tuple[Result, Timing]:
    """Call several times, each time with something freshly prepared; the last result."""
    seconds: list[tuple[float, float]] = []
    in_use = 0
    while True:
        given = prepare()
        _settle()
        if not seconds:
            in_use = _reset_peak()
        processor, started = _processor_seconds(), time.perf_counter()
        result = call(given)
        taken = time.perf_counter() - started
        seconds.append((taken, _processor_seconds() - processor))
        if len(seconds) == repeat or sum(wall for wall, _ in seconds) > ENOUGH_SECONDS:
            peak = max(_memory("VmHWM") - in_use, _children_peak())
            return result, Timing(*min(seconds), peak, len(seconds))
        del result, given


def _round_trips_awkward(codec: Codec[Any]) -> tuple[bool | None, str]:
    base, tuned = awkward()
    try:
        codec.prepare(base, tuned)
        coded = codec.encode(base, tuned)
        result = codec.decode([words.copy() for words in base], coded.payload)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
        return None, f"{type(error).__name__}: {error}"
    return _equal(result, tuned), ""


def _memcpy_seconds(tensors: Tensors) -> float:
    """The fastest of several copies into memory that was touched before."""
    copies = [words.copy() for words in tensors]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for copy, words in zip(copies, tensors, strict=True):
            np.copyto(copy, words)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _settle() -> None:
    """Wait for threads that the last call may have left at work."""
    while True:
        before = time.process_time()
        time.sleep(QUIET_SECONDS)
        if time.process_time() - before < QUIET_SECONDS / 10:
            return


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> int:
    """Give back memory that is free, and forget the peak so far; what is in use now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    """A number of bytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _children_peak() -> int:
    """The most memory that a command used which the codec ran."""
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
