"""Measures encoding and applying on a GPU: ``python tools/bench/gpu.py [--out DIR]``.

On a machine with CUDA, one call takes a few minutes. It first checks that the GPU gives the bytes
that the CPU gives, and stops if it does not; then it prints a table row by row, and writes each row
to ``DIR/gpu.json`` as soon as it is measured, with what each kernel took. On a machine that reaches
no package index, bring the packages as wheels and name their folder (``--wheels``).

With ``--device cpu`` and Triton's interpreter it only shows that it runs: rates would mean nothing,
and are left out.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from device.install import install

DENSITIES: Final = (0.005, 0.02, 0.09, 0.28)


def main() -> None:
    """Install, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for what is written")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mib", type=float, default=4096, help="MiB of model")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    arguments = parser.parse_args()
    install(arguments.wheels)
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from device.bench import run  # noqa: PLC0415 - after what it imports was installed

    run(arguments.device, int(arguments.mib * (1 << 20)), arguments.densities, arguments.out)


if __name__ == "__main__":
    main()
