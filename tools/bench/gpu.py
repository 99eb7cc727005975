"""Measure encoding and applying on a GPU: ``python tools/bench/gpu.py [--out DIR]``.

Takes a few minutes with CUDA. It first compares the bytes of GPU and CPU, and stops if they differ.
Then it prints a table row by row, and saves each row with the times of its kernels to
``DIR/gpu.json``. Without access to a package index, install from a folder of wheels (``--wheels``).

``--device cpu`` runs under Triton's interpreter, as a test without rates.
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
    parser.add_argument("--out", type=Path, help="folder to write gpu.json to")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mib", type=float, default=4096, help="size of the model in MiB")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    arguments = parser.parse_args()
    install(arguments.wheels)
    os.environ["RLSPARSE_GPU"] = "1"
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from device.bench import run  # noqa: PLC0415 - needs the installed packages

    run(arguments.device, int(arguments.mib * (1 << 20)), arguments.densities, arguments.out)


if __name__ == "__main__":
    main()
