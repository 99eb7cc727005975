#!/usr/bin/env python3
"""Run the pipeline on many threads with the kernels under ThreadSanitizer.

    python tools/trust/threads.py --seconds 60

A copy of the package gets its extension built by g++ with `-fsanitize=thread`. A round encodes a
pair on eight threads, applies the delta on eight, and has eight threads read one open delta. A
fault is a report of the sanitizer, another result, a death. Only what is compiled with it is
watched: the kernels, not the interpreter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from result import RESULTS, ROOT, Fault, Result

NATIVE: Final = Path("rlsparse_store") / "kernels" / "native"
SUPPRESSED: Final = "race:_dl_deallocate_tls\n"
"""The C library frees the thread-local memory of a thread that has ended, under its own locks."""

ROUND: Final = """
import sys, threading
from pathlib import Path
from rlsparse_store.delta import apply_delta, encode_delta, open_delta
from rlsparse_store.kernels.native import _kernels

pair, out, copy = map(Path, sys.argv[1:])
assert Path(_kernels.__file__).is_relative_to(copy), _kernels.__file__
encode_delta(pair / "base", pair / "tuned", out / "delta", threads=8)
apply_delta(out / "delta", out / "tuned", base=pair / "base", threads=8)
for path in (pair / "tuned").iterdir():
    assert (out / "tuned" / path.name).read_bytes() == path.read_bytes(), path.name
with open_delta(out / "delta", base=pair / "base", framework="bits") as opened:
    def read():
        for name in opened:
            opened.get_tensor(name)
    threads = [threading.Thread(target=read) for _ in range(8)]
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


def try_round(copy: Path, pair: Path, out: Path) -> str:
    """Do a round; what is wrong, or nothing."""
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
    command = [sys.executable, "-c", ROUND, str(pair), str(out), str(copy)]
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
            pair, out = folder / f"pair-{seed}", folder / f"out-{seed}"
            density = str((0.001, 0.02, 0.3)[seed % 3])
            make = [sys.executable, str(ROOT / "tools" / "make_pair.py"), str(pair)]
            make += ["--tensors", "60", "--gib", "0.02", "--density", density]
            make += ["--seed", str(seed)]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own
            problem = try_round(folder / "copy", pair, out)
            faults = [Fault(problem, f"seed {seed}")] if problem else []
            result.add({"rounds": 1}, faults)
            shutil.rmtree(pair)
            shutil.rmtree(out, ignore_errors=True)
    click.echo(result.summary())
    sys.exit(result.failed())


if __name__ == "__main__":
    main()
