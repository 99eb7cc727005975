#!/usr/bin/env python3
"""Fuzz the kernels and the readers, guided by coverage, and move the base under the decoder.

    python tools/trust/fuzzing.py --seconds 60
    python tools/trust/fuzzing.py --seconds 3600 --keep

A third of the time each: `readers`, atheris on `fuzz_readers.py`, where atheris is installed;
`kernels`, libFuzzer with address and undefined-behaviour sanitizers on `tools/fuzz`, where clang
is; `base`, a base file that another thread rewrites while tensors are decoded. Fuzzers start from
the vectors and from the inputs kept in `corpus/`, to which ``--keep`` adds those that reach
something new, the smallest first. A fault is an input that fails, which is kept in the folder of
``--crashes``, or a tensor that is neither the tuned one nor refused.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from functools import partial
from pathlib import Path
from typing import Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from forked import Died, Place, in_fork
from format_vectors.checkpoints import MODEL, Tensor, Tensors, floats, safetensors
from result import RESULTS, ROOT, Fault, Result
from rlsparse_store.delta import encode_delta, open_delta
from rlsparse_store.errors import RlsparseError

HERE: Final = Path(__file__).resolve().parent
PARTS: Final = ("base", "readers", "kernels")
READERS: Final = (sys.executable, str(HERE / "fuzz_readers.py"))
MOST_KEPT: Final = 1000
"""Inputs of a corpus."""

LIMITS: Final = ("-timeout=20", "-rss_limit_mb=1024", "-max_len=2000")


class MissingError(Exception):
    """A part cannot run here."""


def fuzz_readers(seconds: int, scratch: Path, crashes: Path, *, keep: bool) -> tuple[int, str]:
    """Fuzz the readers; how many executions, and what failed."""
    if importlib.util.find_spec("atheris") is None:
        raise MissingError("readers: atheris is not installed")
    corpus = unpacked("readers", scratch)
    seeds = scratch / "seeds"
    _run([*READERS, "--seeds", str(seeds)])
    folders = [str(corpus), str(seeds)]
    time = f"-max_total_time={seconds}"
    ended = _run([*READERS, *folders, time, *LIMITS, f"-artifact_prefix={crashes}/"])
    if keep and ended.returncode == 0:
        pack("readers", corpus)
    return _executions(ended.stderr), "" if ended.returncode == 0 else _reason(ended.stderr)


def fuzz_kernels(seconds: int, scratch: Path, crashes: Path, *, keep: bool) -> tuple[int, str]:
    """Fuzz the kernels under sanitizers; how many executions, and what failed."""
    if shutil.which("clang++") is None:
        raise MissingError("kernels: clang is not installed")
    corpus = unpacked("kernels", scratch)
    variables = {"PART": "fuzz", "PYTHON": sys.executable, "FUZZ_SECONDS": str(seconds)}
    variables |= {"CORPUS": str(corpus), "CRASHES": str(crashes)}
    ended = _run(["bash", str(ROOT / "tools" / "fuzz" / "run.sh")], **variables)
    if keep and ended.returncode == 0:
        pack("kernels", corpus)
    failed = "" if ended.returncode == 0 else _reason(ended.stderr)
    return _executions(ended.stdout), failed


def _run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this project's own commands
        command,
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )


def _executions(text: str) -> int:
    found = re.findall(r"^Done (\d+) runs", text, flags=re.MULTILINE)
    return int(found[-1]) if found else 0


def _reason(text: str) -> str:
    told = [line for line in text.splitlines() if re.search(r"Error|ERROR|Test unit", line)]
    return "; ".join(told[-3:])[:400] or text[-200:]


def unpacked(name: str, scratch: Path) -> Path:
    """A folder with the inputs that are kept."""
    folder = scratch / f"corpus-{name}"
    folder.mkdir()
    packed = HERE / "corpus" / f"{name}.zip"
    if packed.exists():
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
    return folder


def pack(name: str, folder: Path) -> None:
    """Keep the smallest inputs of a folder; the same inputs give the same bytes."""
    (HERE / "corpus").mkdir(exist_ok=True)
    files = sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name))[:MOST_KEPT]
    fresh = HERE / "corpus" / f"{name}.new"
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    fresh.replace(HERE / "corpus" / f"{name}.zip")


# --- A base that changes under the decoder --------------------------------------------------------


def move_base(
    seed: int, folder: Path, rounds: int, place: Place
) -> tuple[dict[str, int], list[str]]:
    """Read every tensor again and again while a thread rewrites words of the base file."""
    base = {f"w{i}": floats(f"moving {seed} {i}", "BF16", 200, 100) for i in range(4)}
    tuned = {name: _stepped(tensor) for name, tensor in base.items()}
    for side, tensors in (("base", base), ("tuned", tuned)):
        _write(folder / side, tensors)
    encode_delta(folder / "base", folder / "tuned", folder / "delta", threads=1)
    path = folder / "base" / MODEL
    sound = path.read_bytes()
    end = threading.Event()
    thread = threading.Thread(target=_rewrite, args=(path, sound, end))
    counts = {"reads of a moving base": 0, "right": 0, "refused": 0}
    wrong = []
    with open_delta(folder / "delta", base=folder / "base", framework="bits") as opened:
        thread.start()
        try:
            for number in range(rounds):
                place.set(number)
                name = f"w{number % 4}"
                counts["reads of a moving base"] += 1
                try:
                    found = opened.get_tensor(name)
                except RlsparseError:
                    counts["refused"] += 1
                    continue
                if found.tobytes() == tuned[name].data:
                    counts["right"] += 1
                else:
                    wrong.append(f"{name} of round {number}")
        finally:
            end.set()
            thread.join()
    return counts, wrong


def _stepped(tensor: Tensor) -> Tensor:
    words = tensor.words.copy()
    words[::11] ^= 1
    return Tensor(tensor.dtype, tensor.shape, words.tobytes())


def _write(folder: Path, tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(safetensors(tensors, metadata={"format": "pt"}))


def _rewrite(path: Path, sound: bytes, end: threading.Event) -> None:
    """Flip a bit of one word and put it back, all over the file and all of the time.

    It writes to a mapping in memory, which in a file system in memory leaves the time of the last
    change as it is: the reader must see the change in the words.
    """
    start = 8 + int.from_bytes(sound[:8], "little")
    at = start
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as words:
        while not end.is_set():
            at = start + (at - start + 9973) % (len(sound) - start)
            for byte in (sound[at] ^ 1, sound[at]):
                words[at] = byte
                end.wait(0.0001)


# --- The rig --------------------------------------------------------------------------------------


def run_part(
    part: str, seed: int, seconds: int, crashes: Path, *, keep: bool
) -> tuple[dict[str, int], list[Fault]]:
    """Run one part for some time."""
    shared = Path("/dev/shm")  # noqa: S108 - a file system in memory, if there is one
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        scratch = Path(temporary)
        if part == "base":
            found = in_fork(partial(move_base, seed, scratch, 150 * seconds), 300 + 20 * seconds)
            if isinstance(found, Died):
                return {}, [Fault(f"base: the process ended: {found.how}", f"seed {seed}")]
            counts, wrong = found
            return counts, [Fault(f"base: {what} is wrong", f"seed {seed}") for what in wrong]
        fuzz = fuzz_readers if part == "readers" else fuzz_kernels
        executions, failed = fuzz(seconds, scratch, crashes, keep=keep)
        faults = [Fault(f"{part}: {failed}", f"in {crashes.name}")] if failed else []
        return {f"executions of {part}": executions}, faults


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only these.")
@click.option("--keep", is_flag=True, help="Add what was found to the corpus.")
@click.option("--crashes", type=click.Path(path_type=Path), default=Path("crashes"))
def main(
    seconds: float, results: Path, parts: tuple[str, ...], crashes: Path, *, keep: bool
) -> None:
    """Fuzz kernels and readers, and move the base under the decoder."""
    result = Result.read("fuzzing", results)
    result.describe(
        "Fuzzes kernels under sanitizers and readers, guided by coverage, and rewrites the base "
        "under the decoder: no failure but the documented errors, nothing decoded wrong",
        {"executions of kernels": 100_000_000, "executions of readers": 10_000_000},
        ["atheris"],
    )
    chosen = parts or PARTS
    crashes = crashes.resolve()
    crashes.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        seed = next(result.seeds(0))
        try:
            share = max(1, int(seconds / len(chosen)))
            counts, faults = run_part(part, seed, share, crashes, keep=keep)
        except MissingError as missing:
            click.echo(f"not run: {missing}", err=True)
            continue
        result.add(counts, faults)
    if not any(crashes.iterdir()):
        crashes.rmdir()
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()
