#!/usr/bin/env python3
"""Run the pipeline on many threads with the kernels under ThreadSanitizer.

    python tools/trust/threads.py --seconds 60

A copy of the package gets its extension built by g++ with `-fsanitize=thread`. A round encodes a
pair on eight threads, applies the delta on eight, and has eight threads read one open delta. A
fault is a report of the sanitizer, another result, a death. Only what is compiled with it is
watched: the kernels, not the interpreter. Pairs are small, with tasks for all threads: races are a
matter of which thread does what when, not of volume.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from make_pair import main as make_pair
from result import RESULTS, ROOT, Fault, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

NATIVE: Final = Path("rlsparse_store") / "kernels" / "native"
SUPPRESSED: Final = "race:_dl_deallocate_tls\n"
"""The C library frees the thread-local memory of a thread that has ended, under its own locks."""

DENSITIES: Final = (0.001, 0.02, 0.3, 0.02, 0.001)
"""Of the pairs of a seed: one process does a round with each, for starting it takes longest."""

ROUNDS: Final = """
import sys, threading
from pathlib import Path
from rlsparse_store.delta import apply_delta, encode_delta, open_delta
from rlsparse_store.kernels.native import _kernels

copy, *pairs = map(Path, sys.argv[1:])
assert Path(_kernels.__file__).is_relative_to(copy), _kernels.__file__
sys.setswitchinterval(1e-4)

def read(opened):
    for name in opened:
        opened.get_tensor(name)

for pair in pairs:
    delta, result = pair / "delta", pair / "result"
    encode_delta(pair / "base", pair / "tuned", delta, threads=8)
    apply_delta(delta, result, base=pair / "base", threads=8)
    for path in (pair / "tuned").iterdir():
        assert (result / path.name).read_bytes() == path.read_bytes(), path
    with open_delta(delta, base=pair / "base", framework="bits") as opened:
        threads = [threading.Thread(target=read, args=(opened,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
"""


def build(copy: Path) -> None:
    """Copy the package, and build its extension under the sanitizer."""
    shutil.copytree(ROOT / "rlsparse_store", copy / "rlsparse_store")
    native = copy / NATIVE
    for built in native.glob("_kernels*.so"):
        built.unlink()
    include = sysconfig.get_path("include")
    flags = ["-fsanitize=thread", "-O1", "-g", "-std=c++17", "-fPIC", f"-I{include}"]
    flags += ["-fvisibility=hidden", "-DPy_LIMITED_API=0x030B0000", "-shared"]
    sources = sorted(map(str, (native / "src").glob("*.cpp")))
    command = ["g++", *flags, *sources, "-o", str(native / "_kernels.abi3.so")]
    subprocess.run(command, check=True)  # noqa: S603 - the compiler


def make_pairs(folder: Path, seed: int) -> list[Path]:
    """Write the pairs of a seed."""
    pairs = []
    for number, density in enumerate(DENSITIES):
        pairs.append(folder / str(number))
        arguments = ["--tensors", "60", "--gib", "0.004", "--density", str(density)]
        arguments += ["--seed", str(len(DENSITIES) * seed + number)]
        with redirect_stdout(io.StringIO()):
            make_pair([str(pairs[-1]), *arguments], standalone_mode=False)
    return pairs


def try_rounds(copy: Path, pairs: Sequence[Path]) -> str:
    """Do a round with each pair; what is wrong, or nothing."""
    where = ("g++", "-print-file-name=libtsan.so")
    library = subprocess.run(where, capture_output=True, check=True, text=True).stdout.strip()  # noqa: S603 - the compiler
    suppressions = copy / "suppressions"
    suppressions.write_text(SUPPRESSED, encoding="ascii")
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "PYTHONPATH": str(copy),
        "TSAN_OPTIONS": f"suppressions={suppressions} report_signal_unsafe=0",
    }
    command = [sys.executable, "-P", "-c", ROUNDS, str(copy), *map(str, pairs)]
    ended = subprocess.run(  # noqa: S603 - this project's own
        command, env=environment, capture_output=True, check=False, text=True
    )
    reports = re.findall(r"SUMMARY: (ThreadSanitizer: .*)", ended.stderr)
    if reports:
        return str(reports[0])
    return "" if ended.returncode == 0 else ended.stderr.strip()[-300:]


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Of rounds; building comes first.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(seconds: float, results: Path) -> None:
    """Run the pipeline on many threads with the kernels under ThreadSanitizer."""
    result = Result.read("threads", results)
    result.describe(
        "Encodes, applies and reads on eight threads with the kernels under ThreadSanitizer: no "
        "report, the same result",
        {"rounds": 100},
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder / "copy")
        for seed in result.seeds(seconds):
            pairs = make_pairs(folder / "pairs", seed)
            problem = try_rounds(folder / "copy", pairs)
            result.add({"rounds": len(pairs)}, [Fault(problem, f"seed {seed}")] if problem else [])
            shutil.rmtree(folder / "pairs")
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()
