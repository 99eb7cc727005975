"""``rlsparse watch`` in real processes: lines, JSON, exit codes, signals, a real trainer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from pairs import SINGLE, bf16_tensor, file_bytes, save, tune
from trainer_writes import TRAINERS, write_all

from rlsparse_store.delta import inspect_run

if TYPE_CHECKING:
    from pathlib import Path

    from pairs import Tensors

# A test run in the background may have been started with SIGINT ignored, which is inherited.
WATCH = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from rlsparse_store.cli import main; main()"
)

TENSORS: Tensors = {f"layers.{n}.weight": bf16_tensor(n, 40, 32) for n in range(8)}


def command(root: Path, *more: str) -> list[str]:
    places = [str(root / name) for name in ("out", "base", "run")]
    return [
        *(sys.executable, "-P", "-c", WATCH, "watch", places[0], "--base", places[1]),
        *("-o", places[2], "--threads", "1", *more),
    ]


def run(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, *more), capture_output=True, check=False, text=True, timeout=60
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save(tmp_path / "base", TENSORS)
    (tmp_path / "out").mkdir()
    return tmp_path


def write(root: Path, step: int, trainer: str = "Trainer") -> Path:
    tensors = {name: tune(t, step, 0.05) for name, t in TENSORS.items()}
    return write_all(TRAINERS[trainer], root / "out", step, tensors)


def test_lines_for_people_and_for_machines(root: Path) -> None:
    write(root, 1)
    write(root, 2)
    done = run(root, "--once")
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"{root / 'out' / 'checkpoint-1'}: stored as checkpoint-1: ")
    # What holds for every checkpoint is told once.
    assert done.stderr.count("optimizer state is not stored") == 1
    write(root, 3)
    done = run(root, "--once", "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    (event,) = map(json.loads, done.stdout.splitlines())
    assert (event["kind"], event["entry"]["step"]) == ("stored", 3)
    done = run(root, "--once")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exit_codes(root: Path) -> None:
    write(root, 1)
    assert run(root, "--once").returncode == 0
    other = {f"blocks.{n}.kernel": bf16_tensor(50 + n, 7, 9) for n in range(9)}
    write_all(TRAINERS["Trainer"], root / "out", 2, other)
    done = run(root, "--once", "--quiet")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no tensor" in done.stderr or "base" in done.stderr
    (root / "out").rename(root / "elsewhere")
    assert run(root).returncode == 4
    done = subprocess.run(command(root)[:6], capture_output=True, check=False, text=True)
    assert done.returncode == 2


def test_thinning_is_confirmed(root: Path) -> None:
    for step in (1, 2):
        write(root, step)
    weights = root / "out/checkpoint-1" / SINGLE
    done = run(root, "--once", "--thin", "1")
    assert (done.returncode, "--yes removes them" in done.stderr) == (0, True)
    assert weights.exists()
    done = run(root, "--once", "--thin", "1", "--yes", "--json", "-q")
    (event,) = map(json.loads, done.stdout.splitlines())
    assert (event["kind"], event["freed_bytes"] > 0) == ("thinned", True)
    assert not weights.exists()
    for wrong in (("--yes",), ("--thin", "0"), ("--thin", "1", "--cast", "bf16")):
        assert run(root, "--once", *wrong).returncode in {1, 2}


def wait_for(root: Path, name: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (root / "run" / name).exists():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_runs_until_a_signal_and_the_next_one_continues(
    root: Path, number: signal.Signals, code: int
) -> None:
    write(root, 1)
    with subprocess.Popen(
        command(root, "--settle", "0.1"), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(root, "checkpoint-1", process)
        write(root, 2, "slime")
        wait_for(root, "step_2", process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr.startswith(f"watching {root / 'out'}: each complete checkpoint becomes a delta")
    write(root, 3)
    assert "checkpoint-3" in run(root, "--once").stderr
    assert len(inspect_run(root / "run").deltas) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_abandons_what_is_being_encoded(root: Path, number: signal.Signals) -> None:
    tile = bf16_tensor(1, 1 << 10, 1 << 10)
    for path, part in ((root / "base", tile), (root / "out/checkpoint-1", tune(tile, 2, 0.2))):
        path.mkdir(parents=True, exist_ok=True)
        tensors = {f"layers.{n}.weight": part for n in range(32)}
        (path / SINGLE).write_bytes(file_bytes(tensors))
    (root / "out/checkpoint-1/STABLE").touch()
    with subprocess.Popen(command(root), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(root.glob("run/.checkpoint-1.tmp-*")):
            assert process.poll() is None, "it ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert [path.name for path in (root / "run").iterdir()] == [".run"]
    assert "stored" in run(root, "--once").stderr


REPLACED = """
import os, shutil, signal
from rlsparse_store.cli import main
from rlsparse_store.files import output

def interrupted(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def failing(folder, ignore_errors=False):
    remove(folder)
    raise OSError(9, "Bad file descriptor")

remove, shutil.rmtree = shutil.rmtree, failing
output._require_room = interrupted
main()
"""


def test_a_signal_decides_the_exit_code_where_cleaning_up_fails(root: Path) -> None:
    write(root, 1)
    whole = [sys.executable, "-P", "-c", REPLACED, *command(root)[4:]]
    done = subprocess.run(whole, capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "descriptor" not in done.stderr
    assert [path.name for path in (root / "run").iterdir()] == [".run"]


SECOND = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from rlsparse_store.cli.signals import end_at_second
end_at_second()
try:
    os.kill(os.getpid(), signal.SIGTERM)
finally:
    print("cleaning up", flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    whole = [sys.executable, "-P", "-c", SECOND, str(int(number))]
    done = subprocess.run(whole, capture_output=True, check=False, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (128 + number, "cleaning up\n")


def test_two_watchers_of_one_run(root: Path) -> None:
    write(root, 1)
    with subprocess.Popen(command(root), stderr=subprocess.PIPE, text=True) as process:
        wait_for(root, "checkpoint-1", process)
        done = run(root, "--once")
        assert (done.returncode, f"process {process.pid}" in done.stderr) == (1, True)
        process.kill()
        process.communicate()
    # A killed one holds nothing.
    assert run(root, "--once").returncode == 0
