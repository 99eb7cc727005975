"""The rigs that fail, kill and cut commands: a slice of each, and writers that they must catch."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crash_model import ENTRY, Recording, read_record, sampled
from interposer import Op

TRUST = Path(__file__).resolve().parents[2] / "tools" / "trust"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


def rig(name: str, results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TRUST / f"{name}.py"), "--results", str(results), *arguments]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=280)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("faults", ["--command", "encode", "--case", "no memory"]),
        ("faults", ["--command", "run", "--case", "no thread"]),
        ("faults", ["--command", "prune", "--case", "no space from then on"]),
        ("kills", ["--command", "run"]),
        ("kills", ["--command", "push"]),
        ("cuts", ["--command", "encode"]),
        ("cuts", ["--command", "watch"]),
    ],
)
def test_nothing_is_torn_or_lost(tmp_path: Path, name: str, arguments: list[str]) -> None:
    done = rig(name, tmp_path, *arguments, "--seconds", "3")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("name", ["faults", "kills", "cuts"])
def test_a_writer_in_place_is_caught(tmp_path: Path, name: str) -> None:
    done = rig(name, tmp_path, "--command", "control", "--seconds", "3")
    assert done.returncode == 1, done.stderr
    assert "torn: out" in done.stdout


def test_the_model_of_a_power_cut(tmp_path: Path) -> None:
    """What was flushed is there; of the rest, any part."""
    (tmp_path / "old").write_bytes(b"before")
    recording = Recording.before(tmp_path)
    inode = (tmp_path / "old").stat().st_ino
    calls = [
        (Op.CREATE, 77, 0, b"", ("new", "")),
        (Op.WRITE, 77, 0, bytes(4096) + b"tail", ("new", "")),
        (Op.FLUSH, 77, 0, b"", ("new", "")),
        (Op.RENAME, 77, 0, b"", ("new", "old")),
        (Op.FLUSH, recording.root, 0, b"", ("", "")),
        (Op.WRITE, 77, 0, b"x", ("old", "")),
    ]
    record = b"".join(
        ENTRY.pack(op, 1, number, offset, len(data), len(first), len(second))
        + first
        + second
        + data
        for op, number, offset, data, names in calls
        for first, second in [[os.fsencode(tmp_path / n) if n else b"" for n in names]]
    )
    read_record(record, recording)
    states: list[set[bytes]] = []
    for event in range(1, 8):
        rng = random.Random(event)  # noqa: S311 - not a secret
        found = {
            repr(sorted(recording.state(event, missing, has_lengths=has_lengths).items())).encode()
            for missing in sampled(recording, event, rng, 100)
            for has_lengths in (False, True)
        }
        states.append(found)
    whole = bytes(4096) + b"tail"
    before, after, empty = (
        repr(sorted(state.items())).encode()
        for state in ({"old": b"before"}, {"old": whole}, {"old": b"before", "new": b""})
    )
    assert inode != 77
    assert states[0] == {before}
    assert states[1] == {before, empty}
    # The name, the length and either page, each with and without the others.
    assert len(states[2]) > 4
    assert all(b"before" in state for state in states[2] | states[3])
    assert after in states[4]
    assert states[5] == {after}
    assert len(states[6]) == 2
