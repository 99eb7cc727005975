#!/usr/bin/env python3
"""Build a wheel without the native extension, for platforms that have no wheel of their own.

    python tools/pure_wheel.py dist

The package is the same; its kernels are those in NumPy. Needs ``build``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

ROOT = Path(__file__).resolve().parent.parent

EXTENSION = re.compile(
    r"^\[\[tool\.setuptools\.ext-modules\]\]\n.*?(?=^# -{10})", re.MULTILINE | re.DOTALL
)
"""The tables of ``pyproject.toml`` that build the extension and name its ABI."""


def without_extension(pyproject: str) -> str:
    """The project's settings, less those of the extension.

    Raises:
        ValueError: They do not have the tables of the extension exactly once.
    """
    pure, found = EXTENSION.subn("", pyproject)
    if found != 1 or "py-limited-api" in pure:
        msg = "pyproject.toml: the tables of the extension are not where this tool expects them"
        raise ValueError(msg)
    return pure


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write the wheel to the folder OUT."""
    with TemporaryDirectory() as scratch:
        source = Path(scratch)
        for name in ("README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(
            ROOT / "rlsparse_store",
            source / "rlsparse_store",
            ignore=shutil.ignore_patterns("__pycache__", "*.so", "src"),
        )
        pure = without_extension((ROOT / "pyproject.toml").read_text())
        (source / "pyproject.toml").write_text(pure)
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", out.resolve(), source],
            check=True,
        )


if __name__ == "__main__":
    main()
