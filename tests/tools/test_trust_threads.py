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
def test_what_rounds_say(tmp_path: Path, code: int, stderr: str, problem: str) -> None:
    ended = subprocess.CompletedProcess([], code, "", stderr)
    with mock.patch.object(subprocess, "run", return_value=ended):
        found = threads.try_rounds(tmp_path, [tmp_path])
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_pairs_of_a_seed_differ_and_come_again(tmp_path: Path) -> None:
    some, again, others = (
        threads.make_pairs(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    tuned = [[weights(pair) for pair in pairs] for pairs in (some, again, others)]
    assert tuned[0] == tuned[1]
    assert len({*tuned[0], *tuned[2]}) == 2 * len(threads.DENSITIES)


def weights(pair: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((pair / "tuned").glob("*.safetensors")))
