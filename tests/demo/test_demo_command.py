"""The command ``rlsparse demo --quick``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytest.importorskip("transformers")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "rlsparse_store", *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        check=False,
        text=True,
    )


def test_quick_demo(tmp_path: Path) -> None:
    first = run("demo", "--quick", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert len(lines) <= 40
    figures = ["reward", "changed", "checkpoint", "delta", "rebuilt", "took"]
    assert [line.split()[0] for line in lines[-6:]] == figures
    folder = tmp_path / "rlsparse-demo"
    assert (folder / "rebuilt" / "model.safetensors").read_bytes() == (
        folder / "tuned" / "model.safetensors"
    ).read_bytes()
    report = json.loads(run("inspect", "rlsparse-demo/delta", "--json", cwd=tmp_path).stdout)
    assert 0 < report["density"] < 1 / 3
    assert f"{report['changed']:,} of {report['elements']:,} weights" in lines[-5]
    again = run("demo", "--quick", cwd=tmp_path)
    assert again.returncode == 1
    assert "choose another folder" in again.stderr


def test_verbose_demo(tmp_path: Path) -> None:
    demo = run("demo", "--quick", "--verbose", cwd=tmp_path)
    assert (demo.returncode, demo.stderr) == (0, "")
    for line in (
        "Reward on the same 500 held-out sums",
        "$ rlsparse inspect",
        "By layer",
        "MiniLM",
    ):
        assert line in demo.stdout
    assert demo.stdout.splitlines()[-1].startswith("  took")
