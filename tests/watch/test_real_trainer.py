"""A real trainer that writes 50 checkpoints and rotates them, and a watcher beside it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import small_llama
from pairs import SINGLE

from rlsparse_store.delta import apply_delta, inspect_run, verify_run

if TYPE_CHECKING:
    from rlsparse_store.delta import RunEntry

TRAINING = Path(__file__).parents[1] / "support" / "trainer_run.py"
STEPS = 50
LIMIT = 8
"""Checkpoints that the trainer keeps: each lives for more than a second."""


def test_every_checkpoint_of_a_rotating_trainer_is_stored_once(tmp_path: Path) -> None:
    base, out, run, log = (tmp_path / name for name in ("base", "out", "run", "log"))
    small_llama().save_pretrained(base)
    out.mkdir()
    watch = [sys.executable, "-P", "-m", "rlsparse_store", "watch", str(out), "--base", str(base)]
    watch += ["-o", str(run), "--settle", "0.3", "--json", "--threads", "1"]
    training = [
        sys.executable,
        str(TRAINING),
        str(base),
        str(out),
        str(STEPS),
        str(LIMIT),
        str(log),
    ]
    events = tmp_path / "events"
    with events.open("w") as lines, subprocess.Popen([*watch, "-q"], stdout=lines) as watcher:
        done = subprocess.run(training, capture_output=True, check=False, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + 60
        while not (run / f"checkpoint-{STEPS}").exists() and time.monotonic() < deadline:
            assert watcher.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)
        watcher.send_signal(signal.SIGTERM)
    assert watcher.returncode == 128 + signal.SIGTERM
    saved = {line["step"]: line["sha256"] for line in json_lines(log)}
    assert list(saved) == list(range(1, STEPS + 1))
    left = {path.name for path in out.glob("checkpoint-*")}
    assert len(left) == LIMIT
    entries = inspect_run(run).deltas
    assert [(entry.name, entry.folder) for entry in entries] == [
        (f"checkpoint-{step}",) * 2 for step in saved
    ]
    assert [entry.step for entry in entries] == list(saved)
    assert all("loss" in entry.metrics for entry in entries)
    assert parents_of(entries) == [None, *(entry.tuned_digest for entry in entries[:-1])]
    stored = [event for event in json_lines(events) if event["kind"] == "stored"]
    assert [event["entry"]["step"] for event in stored] == list(saved)
    for step, digest in saved.items():
        apply_delta(run / f"checkpoint-{step}", tmp_path / "work" / str(step), base=base)
        weights = (tmp_path / "work" / str(step) / SINGLE).read_bytes()
        assert hashlib.sha256(weights).hexdigest() == digest, step
    assert len(verify_run(run, base=base).entries) == STEPS


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parents_of(entries: list[RunEntry]) -> list[str | None]:
    return [entry.parent for entry in entries]
