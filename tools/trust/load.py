#!/usr/bin/env python3
"""Load: many readers, many open deltas, many tensors, much data, long runs.

    python tools/trust/load.py --seconds 60
    python tools/trust/load.py --full --part threads
    python tools/trust/load.py --full --part sparse --gib 16

Each part runs in a process of its own, and compares every byte that it reads. A fault is a wrong
byte, an error, or memory or descriptors that grow: what a part holds after it warmed up is compared
with what it holds at the end. Without ``--full``, parts are a tenth to a hundredth of their size.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from pairs import Tensor, Tensors, random_tensor, save, tune

from forked import Died, in_fork
from result import RESULTS, Fault, Result
from rlsparse_store.delta import apply_delta, encode_delta, encode_run, inspect_run, open_delta
from rlsparse_store.errors import ImplausibleWarning
from rlsparse_store.files.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

GROWTH: Final = 32 << 20
"""Bytes by which memory may grow after the warm-up: allocators keep what threads gave back."""

PATIENCE: Final = 3600


def memory() -> int:
    """The resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The largest resident memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def descriptors() -> int:
    """The open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of names


class Level:
    """What a part holds once it is warm, and what is wrong with what it holds later."""

    def __init__(self) -> None:
        gc.collect()
        self.memory, self.descriptors = memory(), descriptors()

    def judge(self, room: int = GROWTH) -> list[str]:
        """What grew since."""
        gc.collect()
        grown, more = memory() - self.memory, descriptors() - self.descriptors
        wrong = [f"memory grew by {grown >> 20} MiB"] if grown > room else []
        return wrong + ([f"{more} more descriptors are open"] if more else [])


def make_pair(folder: Path, count: int, rows: int) -> tuple[Tensors, Path]:
    """A base and a delta. Returns the tuned tensors, and the folder with ``base`` and ``delta``."""
    base = {f"layers.{n}.weight": random_tensor(n, "F16", rows, 256) for n in range(count)}
    tuned = {name: tune(t, n, 0.05) for n, (name, t) in enumerate(base.items())}
    save(folder / "base", base)
    save(folder / "tuned", tuned)
    encode_delta(folder / "base", folder / "tuned", folder / "delta", threads=1, force=True)
    return tuned, folder


def read_and_compare(delta: Any, tuned: Tensors, rng: random.Random) -> int:  # noqa: ANN401
    """Read a tensor or rows of it. Returns the bytes, or raises if one is wrong."""
    name = rng.choice(list(tuned))
    expected = tuned[name]
    rows, width = expected.shape[0], len(expected.data) // expected.shape[0]
    if rng.random() < 0.3:
        found = delta.get_tensor(name).tobytes()
        wanted = expected.data
    else:
        start = rng.randrange(rows)
        end = rng.randint(start, rows)
        found = delta.get_slice(name)[start:end].tobytes()
        wanted = expected.data[start * width : end * width]
    if found != wanted:
        msg = f"{name} has a wrong byte"
        raise ValueError(msg)
    return len(found)


# --- the parts ------------------------------------------------------------------------------------


def threads(folder: Path, size: int) -> dict[str, Any]:
    """64 threads read one open delta for a number of seconds."""
    tuned, place = make_pair(folder, 16, 512)
    failures: list[str] = []
    reads = [0] * 64
    ends = time.monotonic() + size
    warm = threading.Event()

    def read(number: int, delta: Any) -> None:  # noqa: ANN401
        rng = random.Random(number)  # noqa: S311 - repeatable
        try:
            while time.monotonic() < ends:
                read_and_compare(delta, tuned, rng)
                reads[number] += 1
        except Exception as error:  # noqa: BLE001 - told
            failures.append(repr(error))

    with open_delta(place / "delta", base=place / "base", framework="np") as delta:
        started = [threading.Thread(target=read, args=(n, delta)) for n in range(64)]
        for thread in started:
            thread.start()
        warm.wait(size / 4)
        level = Level()
        for thread in started:
            thread.join()
        wrong = level.judge()
    return {
        "seconds of 64 threads": size,
        "reads by threads": sum(reads),
        "wrong": wrong + failures,
    }


def processes(folder: Path, size: int) -> dict[str, Any]:
    """A number of processes read one delta at once."""
    tuned, place = make_pair(folder, 8, 256)
    children = []
    for number in range(size):
        child = os.fork()
        if not child:
            status = 1
            try:
                with open_delta(place / "delta", base=place / "base", framework="np") as delta:
                    for _ in range(20):
                        read_and_compare(delta, tuned, random.Random(number))  # noqa: S311
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return {"processes": size, "wrong": [f"{failed} processes failed"] if failed else []}


def deltas(folder: Path, size: int) -> dict[str, Any]:
    """A number of deltas are open at once, twice."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tuned, place = make_pair(folder, 2, 64)
    copies = [place / f"copy-{number}" for number in range(size)]
    for copy in copies:
        shutil.copytree(place / "delta", copy, copy_function=os.link)
    rng = random.Random(size)  # noqa: S311 - repeatable
    level = None
    wrong: list[str] = []
    for _ in range(3):
        opened = [open_delta(copy, base=place / "base", framework="np") for copy in copies]
        for delta in opened:
            read_and_compare(delta, tuned, rng)
        for delta in opened:
            delta.close()
        del opened, delta
        if level is None:
            level = Level()
        wrong = level.judge()
    return {"deltas open at once": size, "wrong": wrong}


def tensors(folder: Path, size: int) -> dict[str, Any]:
    """A checkpoint of many tensors is encoded and rebuilt."""
    rng = np.random.default_rng(size)
    words = rng.integers(0, 1 << 16, (size, 16), np.uint16)
    changed = words ^ (rng.random(words.shape) < 0.05)
    base, tuned = (
        {f"experts.{n}.weight": Tensor("BF16", (4, 4), row.tobytes()) for n, row in enumerate(part)}
        for part in (words, changed.astype(np.uint16))
    )
    save(folder / "base", base)
    save(folder / "tuned", tuned)
    encode_delta(folder / "base", folder / "tuned", folder / "delta", force=True)
    apply_delta(folder / "delta", folder / "out", base=folder / "base")
    name = "model.safetensors"
    same = (folder / "out" / name).read_bytes() == (folder / "tuned" / name).read_bytes()
    return {"tensors": size, "MiB at most": peak() >> 20, "wrong": [] if same else ["not the same"]}


def sparse(folder: Path, size: int) -> dict[str, Any]:
    """A pair of files with holes, of many GiB, is encoded, and its changes are read."""
    names = [f"layers.{n}.weight" for n in range(size)]
    fields = {
        name: {"dtype": "F16", "shape": [1 << 15, 1 << 14], "data_offsets": [n << 30, n + 1 << 30]}
        for n, name in enumerate(names)
    }
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    changes = np.random.default_rng(size).integers(1, 1 << 16, 1000, np.uint16).tobytes()
    for kind in ("base", "tuned"):
        (folder / kind).mkdir()
        with (folder / kind / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            start = file.tell()
            file.truncate(start + (size << 30))
            for number in range(size if kind == "tuned" else 0):
                file.seek(start + (number << 30) + (7 << 15))
                file.write(changes)
    before = peak()
    encode_delta(folder / "base", folder / "tuned", folder / "delta", force=True)
    grown = peak() - before
    wrong = [f"encoding took {grown >> 20} MiB"] if grown > 1 << 30 else []
    with (
        open_checkpoint(folder / "base"),
        open_delta(folder / "delta", base=folder / "base", framework="np") as delta,
    ):
        for name in names:
            found = delta.get_slice(name)[7].tobytes()
            if found != changes + bytes((1 << 15) - len(changes)):
                wrong.append(f"{name} has a wrong byte")
    return {"GiB of a sparse pair": size, "MiB at most": peak() >> 20, "wrong": wrong}


def run(folder: Path, size: int) -> dict[str, Any]:
    """A run of many checkpoints is encoded by one process, in parts."""
    base = {f"layers.{n}.weight": random_tensor(n, "BF16", 32, 64) for n in range(2)}
    save(folder / "base", base)
    level = None
    wrong: list[str] = []
    for start in range(0, size, max(1, size // 10)):
        places = []
        for step in range(start, min(size, start + max(1, size // 10))):
            moved = {name: tune(t, step, 0.05) for name, t in base.items()}
            places.append(save(folder / "out" / f"checkpoint-{step}", moved))
        encode_run(folder / "base", places, folder / "run", threads=1, force=True)
        shutil.rmtree(folder / "out")
        if start >= size // 5 and level is None:
            level = Level()
        if level is not None:
            wrong = level.judge()
    entries = len(inspect_run(folder / "run").deltas)
    if entries != size:
        wrong.append(f"{entries} entries of {size}")
    return {"checkpoints of a run": size, "MiB at most": peak() >> 20, "wrong": wrong}


PARTS: Final[dict[str, tuple[Callable[[Path, int], dict[str, Any]], int, int]]] = {
    "threads": (threads, 2, 600),
    "processes": (processes, 20, 200),
    "deltas": (deltas, 50, 1000),
    "tensors": (tensors, 2000, 100_000),
    "sparse": (sparse, 1, 64),
    "run": (run, 20, 1000),
}
"""Each part, its size in a slice, and its full size."""


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long to go on.")
@click.option("--part", "only", type=click.Choice([*PARTS]), help="Only this part.")
@click.option("--full", is_flag=True, help="Parts at their full size.")
@click.option(
    "--gib", type=int, default=64, show_default=True, help="Full size of the sparse pair."
)
@click.option("--root", type=Path, help="Folder for files, on a file system with holes.")
@click.option("--results", type=Path, default=RESULTS, help="Folder of the results.")
def main(
    seconds: float,
    only: str | None,
    full: bool,  # noqa: FBT001 - click passes every parameter by name
    gib: int,
    root: Path | None,
    results: Path,
) -> None:
    """Load: many readers, many open deltas, many tensors, much data, long runs."""
    result = Result.read("load", results)
    result.describe(
        "Many threads, processes, open deltas, tensors, bytes and checkpoints. A fault is a wrong "
        "byte, an error, or memory or descriptors that grow.",
        {
            "seconds of 64 threads": 600,
            "processes": 200,
            "deltas open at once": 1000,
            "tensors": 100_000,
            "GiB of a sparse pair": 64,
            "checkpoints of a run": 1000,
        },
    )
    # The tensors of some parts are too small to be worth storing as a delta.
    warnings.simplefilter("ignore", ImplausibleWarning)
    for seed in result.seeds(seconds):
        name = only or [*PARTS][seed % len(PARTS)]
        work, small, large = PARTS[name]
        size = (gib if name == "sparse" else large) if full else small
        folder = Path(tempfile.mkdtemp(prefix="trust-load-", dir=root))
        try:
            found = in_fork(lambda _: work(folder, size), PATIENCE)  # noqa: B023 - called here
        finally:
            shutil.rmtree(folder)
        case = f"--part {name}{' --full' if full else ''}"
        if isinstance(found, Died):
            found = {"wrong": [f"died: {found.how.strip().rpartition(chr(10))[2]}"]}
        wrong = found.pop("wrong")
        click.echo(f"{name}, {size}: {found} {wrong or ''}")
        found.pop("MiB at most", None)
        result.add(found, [Fault(f"{name}: {text}", case) for text in wrong])
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()
