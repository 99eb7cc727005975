"""A slice of each part of the load rig."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RIG = Path(__file__).resolve().parents[2] / "tools" / "trust" / "load.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("part", ["threads", "processes", "deltas", "tensors", "sparse", "run"])
def test_nothing_grows_and_every_byte_is_right(tmp_path: Path, part: str) -> None:
    command = [sys.executable, str(RIG), "--part", part, "--seconds", "0", "--root", str(tmp_path)]
    command += ["--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert list(tmp_path.glob("trust-load-*")) == []
