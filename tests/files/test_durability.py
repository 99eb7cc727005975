"""Crashes and full disks: under the final name there is all of the result or none of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pairs import SINGLE, bf16_tensor, contents, file_bytes, save, tune

from rlsparse_store.delta import apply_delta, encode_delta, verify_delta

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = ("encode", "apply")

# Ends the process by SIGKILL before or after the N-th thing it does to the disk.
KILLED = """
import itertools, os, signal, sys
last, after, count = int(sys.argv.pop(1)), sys.argv.pop(1) == "after", itertools.count(1)
def counted(function):
    def call(*arguments, **options):
        number = next(count)
        if number == last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return function(*arguments, **options)
        finally:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)
    return call
for name in ("mkdir", "pwrite", "fsync", "rename"):
    setattr(os, name, counted(getattr(os, name)))
from rlsparse_store.cli import main
try:
    main()
finally:
    print("steps", next(count) - 1, file=sys.stderr)
"""

# Runs with a limit on the length of files; writing beyond it is an error like a full disk.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from rlsparse_store.cli import main
main()
"""

# Finds a temporary folder of a dead process that had the same number, as in a container.
REBORN = """
import os, re, socket, sys
from pathlib import Path
host = re.sub("[^A-Za-z0-9]", "", socket.gethostname())[:32]
out = Path(sys.argv[-1])
(out.parent / f".{out.name}.tmp-{host}-{os.getpid()}").mkdir()
from rlsparse_store.cli import main
main()
"""


def start(*arguments: str | Path | int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", *map(str, arguments)],
        env={"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and what it said on standard error."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@dataclass(frozen=True)
class Pair:
    """A pair and its delta: what encode and apply have to give."""

    base: Path
    tuned: Path
    delta: Path

    def arguments(self, name: str, out: Path) -> list[str | Path]:
        if name == "encode":
            return ["encode", self.base, self.tuned, "-o", out]
        return ["apply", self.delta, "-b", self.base, "-o", out]

    def do(self, name: str, out: Path) -> None:
        if name == "encode":
            encode_delta(self.base, self.tuned, out)
        else:
            apply_delta(self.delta, out, base=self.base)

    def result(self, name: str) -> Path:
        return self.delta if name == "encode" else self.tuned

    def check_absent_or_complete(self, name: str, out: Path) -> bool:
        """Whether it is there; if so it must be complete."""
        if not out.exists():
            return False
        assert contents(out) == contents(self.result(name))
        if name == "encode":
            verify_delta(out, base=self.base, tuned=self.tuned)
        return True

    def check_next_run(self, name: str, out: Path) -> None:
        """After a crash the next run succeeds, and clears up."""
        if self.check_absent_or_complete(name, out):
            shutil.rmtree(out)
        self.do(name, out)
        assert self.check_absent_or_complete(name, out)
        assert [path.name for path in out.parent.iterdir()] == [out.name]


def make_pair(root: Path, tile_words: int, tiles: int) -> Pair:
    tile = bf16_tensor(1, tile_words)
    other = tune(tile, 2, density=0.1)
    for name, part in (("base", tile), ("tuned", other)):
        folder = save(root / name, {})
        tensors = {f"layers.{number}.weight": part for number in range(tiles)}
        (folder / SINGLE).write_bytes(file_bytes(tensors))
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        (folder / "tokenizer.json").write_bytes(b"x" * 300_000)
    encode_delta(root / "base", root / "tuned", root / "delta")
    return Pair(root / "base", root / "tuned", root / "delta")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("small"), 20_000, 3)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Large enough to be killed half way: 32 MiB each."""
    root = tmp_path_factory.mktemp("large")
    yield make_pair(root, 1 << 20, 16)
    shutil.rmtree(root)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


# Crashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_chosen_steps(small: Pair, work: Path, name: str) -> None:
    everything = small.arguments(name, work / "out")
    code, err = finish(start("-c", KILLED, 0, "never", *everything))
    assert code == 0, err
    steps = int(err.split()[-1])
    assert steps > 5
    shutil.rmtree(work / "out")
    survived = set()
    # The last two are the rename and the flush of the parent folder.
    for step, moment in (
        (1, "after"),
        (3, "before"),
        (steps // 2, "after"),
        (steps - 1, "before"),
        (steps - 1, "after"),
        (steps, "after"),
    ):
        code, _ = finish(start("-c", KILLED, step, moment, *everything))
        assert code == -9, (step, moment, steps)
        if (work / "out").exists():
            survived.add((step, moment))
        small.check_next_run(name, work / "out")
        shutil.rmtree(work / "out")
    assert survived == {(steps - 1, "after"), (steps, "after")}


def bytes_under(folder: Path) -> int:
    """Bytes of the files below, some of which may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).stat().st_size
            except FileNotFoundError:
                continue
    return total


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_while_it_writes(large: Pair, work: Path, name: str, share: float) -> None:
    enough = share * bytes_under(large.result(name))
    delay = random.Random(f"{name} {share}").uniform(0, 0.05)  # noqa: S311 - not for secrets
    process = start("-m", "rlsparse_store", *large.arguments(name, work / "out"))
    while process.poll() is None and not (list(work.iterdir()) and bytes_under(work) >= enough):
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    finish(process)
    large.check_next_run(name, work / "out")


def test_temporary_folder_of_a_running_process_is_kept(small: Pair, work: Path) -> None:
    sleeping = REBORN.replace("main()", "import time; time.sleep(60)")
    process = start("-c", sleeping, work / "out")
    while not list(work.iterdir()):
        assert process.poll() is None
        time.sleep(0.001)
    (other,) = work.iterdir()
    small.do("encode", work / "out")
    assert other.exists()
    process.kill()
    finish(process)


def test_stale_folder_of_a_process_of_the_same_number(small: Pair, work: Path) -> None:
    code, err = finish(start("-c", REBORN, *small.arguments("encode", work / "out")))
    assert code == 0, err
    assert [path.name for path in work.iterdir()] == ["out"]


def test_stale_folder_of_a_name_with_brackets(small: Pair, work: Path) -> None:
    everything = small.arguments("encode", work / "out[1]")
    finish(start("-c", KILLED, 3, "after", *everything))
    assert len(list(work.iterdir())) == 1
    small.check_next_run("encode", work / "out[1]")


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_is_flushed_before_the_rename(
    small: Pair, work: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, flushed, before = work / "out", set[int](), set[int]()
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def rename(source: Path, target: Path) -> None:
        if Path(target) == out:
            before.update(flushed)
            flushed.clear()
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    small.do(name, out)
    assert {
        path.name for path in [out, *out.rglob("*")] if path.stat().st_ino not in before
    } == set()
    assert work.stat().st_ino in flushed


# Full disks ----------------------------------------------------------------------------------


def check_full(out: Path, process: subprocess.Popen[str]) -> str:
    code, err = finish(process)
    assert code == 1, err
    assert err.startswith(f"rlsparse: {out.parent}/"), err
    assert len(err.splitlines()) == 1, err
    assert list(out.parent.iterdir()) == []
    return err


@pytest.mark.parametrize("limit", [0, 40_000, 299_999])
@pytest.mark.parametrize("name", COMMANDS)
def test_file_size_limit(small: Pair, work: Path, name: str, limit: int) -> None:
    process = start("-c", LIMITED, limit, *small.arguments(name, work / "out"))
    check_full(work / "out", process)


@contextmanager
def tiny_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of this size, or skip the test."""
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root and mount")
    place.mkdir()
    whole = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    done = subprocess.run(whole, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([unmount, str(place)], check=True)


@pytest.mark.parametrize("size", ["16k", "200k"])
@pytest.mark.parametrize("name", COMMANDS)
def test_full_disk(small: Pair, tmp_path: Path, name: str, size: str) -> None:
    with tiny_disk(tmp_path / "disk", size) as disk:
        process = start("-m", "rlsparse_store", *small.arguments(name, disk / "out"))
        assert "no space left" in check_full(disk / "out", process)
