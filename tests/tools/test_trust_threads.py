"""The rig of threads: a sanitizer's report is a fault, and so is another result."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING
from unittest import mock

import pytest

import threads

if TYPE_CHECKING:
    from pathlib import Path

REPORT = "WARNING: x\nSUMMARY: ThreadSanitizer: data race masks.hpp:1 in count\n"


@pytest.mark.parametrize(
    ("code", "stderr", "problem"),
    [(0, "", ""), (66, REPORT, "ThreadSanitizer: data race masks.hpp:1"), (1, "torn", "torn")],
)
def test_what_a_round_says(tmp_path: Path, code: int, stderr: str, problem: str) -> None:
    ended = subprocess.CompletedProcess([], code, "", stderr)
    with mock.patch.object(subprocess, "run", return_value=ended):
        found = threads.try_round(tmp_path, tmp_path, tmp_path)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)
