"""Description of the machine and the installed packages."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "rlsparse-store",
    "numpy",
    "zstandard",
    "torch",
    "triton",
    "fireworks-delta-compression",
    "zipnn",
    "z4ai",
    "lmzip",
    "weightscope",
    "pcodec",
)


def describe_machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, system, Python version, and date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30), 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def describe_packages() -> dict[str, str]:
    """Versions of the installed packages among those measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
