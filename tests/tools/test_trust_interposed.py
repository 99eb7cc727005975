"""The rigs that fail, kill and cut commands: a slice of each, and writers that they must catch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRUST = Path(__file__).resolve().parents[2] / "tools" / "trust"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


def rig(name: str, results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TRUST / f"{name}.py", "--results", results, *arguments]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=280)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("faults", ["--command", "encode", "--case", "no memory"]),
        ("faults", ["--command", "run", "--case", "no thread"]),
        ("faults", ["--command", "prune", "--case", "no space from then on"]),
        ("kills", ["--command", "run"]),
        ("kills", ["--command", "push"]),
    ],
)
def test_nothing_is_torn_or_lost(tmp_path: Path, name: str, arguments: list[str]) -> None:
    done = rig(name, tmp_path, *arguments, "--seconds", "3")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("name", ["faults", "kills"])
def test_a_writer_in_place_is_caught(tmp_path: Path, name: str) -> None:
    done = rig(name, tmp_path, "--command", "control", "--seconds", "3")
    assert done.returncode == 1
    assert "torn: out" in done.stdout
