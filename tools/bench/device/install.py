"""What the benchmark needs, installed where it is missing: from an index, or from wheels."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
PACKAGE: Final = "rlsparse_store"
NEEDED: Final = {
    "numpy": "numpy",
    "zstandard": "zstandard",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "click": "click",
    "xxhash": "xxhash",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
"""What the package imports, and where that comes from. Torch and Triton are the machine's."""


def install(wheels: Path | None) -> None:
    """Install what is missing, and the package if it is: its wheel, or else this checkout."""
    missing = [project for module, project in NEEDED.items() if find_spec(module) is None]
    if missing:
        _pip(wheels, *missing)
    if find_spec(PACKAGE) is None:
        is_built = wheels is not None and any(wheels.glob(f"{PACKAGE}-*.whl"))
        _pip(wheels, *([PACKAGE] if is_built else ["--no-build-isolation", str(ROOT)]))
    _require_this_checkout()


def _pip(wheels: Path | None, *what: str) -> None:
    source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *source, *what]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"cannot install {' '.join(what)}: bring wheels (tools/bench/README.md)")
    importlib.invalidate_caches()


def _require_this_checkout() -> None:
    """Require that what is installed was made from this checkout: an older wheel may lie about."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"{PACKAGE} was installed and cannot be found")
    here, there = ROOT / PACKAGE, Path(spec.origin).parent
    for source in sorted(here.rglob("*.py")):
        installed = there / source.relative_to(here)
        if not installed.is_file() or installed.read_bytes() != source.read_bytes():
            sys.exit(f"{installed} is not that of this checkout: install it, or its wheel, anew")
