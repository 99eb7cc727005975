"""Runs: checkpoints of one base encoded in sequence, interrupted, and extended."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pairs import SINGLE, Tensor, Tensors, bf16_tensor, contents, file_bytes, save, tune

from rlsparse_store.delta import (
    apply_delta,
    encode_delta,
    encode_run,
    inspect_delta,
    inspect_run,
    run_encoder,
)
from rlsparse_store.delta.encode import encode_spans
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.errors import (
    BaseMismatchError,
    CheckpointError,
    NotFoundError,
    OutputError,
    RlsparseError,
)
from rlsparse_store.files import output
from rlsparse_store.format.digests import leaf_hashes
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.delta.encoder import Encoder

STEPS = ("step-9", "step-10", "step-200")

# Ends the process by SIGKILL just before the N-th delta gets its name.
KILLED = """
import itertools, os, signal, sys
last, count, rename = int(sys.argv.pop(1)), itertools.count(1), os.rename
def counted(*arguments, **options):
    if ".tmp-" in os.path.basename(arguments[0]) and next(count) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*arguments, **options)
os.rename = counted
from rlsparse_store.cli import main
main()
"""


@dataclass(frozen=True)
class Training:
    """A base and checkpoints of its tuning."""

    base: Path
    tuned: list[Path]


def base_tensors() -> Tensors:
    return {f"layers.{n}.weight": bf16_tensor(n, 300, 64 + n) for n in range(4)}


def later(tensors: Tensors, seed: int) -> Tensors:
    return {name: tune(t, seed, 0.05) for name, t in tensors.items()}


@pytest.fixture
def training(tmp_path: Path) -> Training:
    tensors = base_tensors()
    base = save(tmp_path / "base", tensors)
    tuned = []
    for seed, name in enumerate(STEPS):
        tensors = later(tensors, seed)
        tuned.append(save(tmp_path / name, tensors))
        (tuned[-1] / "config.json").write_text('{"model_type": "qwen2"}')
    return Training(base, tuned)


def check(training: Training, run: Path, work: Path) -> None:
    """Assert that each delta of a run equals the delta of its checkpoint alone."""
    for path in training.tuned:
        encode_delta(training.base, path, work / path.name)
        entry = contents(run / path.name)
        del entry["rlsparse/entry.json"]
        assert entry == contents(work / path.name)


def folders(run: Path) -> list[str]:
    """The folders of a run, without those whose names start with a dot."""
    return sorted(p.name for p in run.iterdir() if p.is_dir() and not p.name.startswith("."))


def test_run_has_the_deltas_of_all_checkpoints(training: Training, tmp_path: Path) -> None:
    report = encode_run(training.base, training.tuned, tmp_path / "run")
    assert [d.name for d in report.deltas] == list(STEPS)
    assert all(d.is_new for d in report.deltas)
    check(training, tmp_path / "run", tmp_path / "alone")
    for entry in inspect_run(tmp_path / "run").deltas:
        alone = inspect_delta(tmp_path / "run" / entry.name)
        assert (entry.changed, entry.density) == (alone.changed, alone.density)
        assert entry.tuned_digest == alone.tuned_digest
        assert not entry.is_new


def test_checkpoints_with_different_layouts(tmp_path: Path) -> None:
    tensors = base_tensors()
    base = save(tmp_path / "base", tensors)
    grown = dict(tensors)
    t = tensors["layers.1.weight"]
    grown["layers.1.weight"] = Tensor("BF16", (301, 65), t.data + bytes(130))
    less = {name: t for name, t in later(tensors, 5).items() if name != "layers.0.weight"}
    more = later(tensors, 6) | {"zz": bf16_tensor(9, 4)}
    paths = [save(tmp_path / n, t) for n, t in (("a", grown), ("b", less), ("c", more))]
    single = tmp_path / "d.safetensors"
    single.write_bytes(file_bytes(later(tensors, 7)))
    training = Training(base, [*paths, single])
    report = encode_run(base, training.tuned, tmp_path / "run")
    assert [d.name for d in report.deltas] == ["a", "b", "c", "d"]
    for path in training.tuned:
        name = path.name.removesuffix(".safetensors")
        apply_delta(tmp_path / "run" / name, tmp_path / "out" / name, base=base)
        made = tmp_path / "out" / name / (single.name if path is single else SINGLE)
        assert made.read_bytes() == (path if path is single else path / SINGLE).read_bytes()


def test_one_checkpoint_may_be_given_by_itself(training: Training, tmp_path: Path) -> None:
    place = training.tuned[0]
    for n, given in enumerate((place, str(place), (p for p in [place]))):
        report = encode_run(training.base, given, tmp_path / f"run{n}")  # type: ignore[arg-type]
        assert [entry.name for entry in report.deltas] == [place.name]


def test_what_a_trainers_folder_holds_besides_is_told(training: Training, tmp_path: Path) -> None:
    out, tensors = tmp_path / "out", later(base_tensors(), 1)
    save(out / "checkpoint-1", tensors)
    final = save(out / "final", later(tensors, 2))
    report = encode_run(training.base, [out], tmp_path / "run")
    (note,) = report.notes
    assert note == f"not stored: {final} is not in a folder named after its step (checkpoint-100)"
    assert report.as_json()["notes"] == report.notes
    save(out / "first", tensors)
    (note,) = encode_run(training.base, [out], tmp_path / "run").notes
    assert note.startswith(f"not stored: {final} is")
    assert note.endswith(" (and 1 more like it)")
    shutil.rmtree(out / "first")
    report = encode_run(training.base, [out, final], tmp_path / "run")
    assert [entry.name for entry in report.deltas] == ["checkpoint-1", "final"]
    assert not report.notes


def test_the_base_is_hashed_once(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []

    def counted(_: object, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
        hashed.append(data.nbytes)
        return leaf_hashes(data)

    monkeypatch.setattr(type(get_backend()), "leaf_hashes", counted)
    sums = []
    for number in (1, 2, 3):
        hashed.clear()
        encode_run(training.base, training.tuned[:number], tmp_path / str(number), threads=1)
        sums.append(sum(hashed))
    # A checkpoint's own bytes, twice: as they are read, and as they are decoded in the proof.
    assert sums[2] - sums[1] == sums[1] - sums[0]
    nbytes = sum(len(t.data) for t in base_tensors().values())
    assert sums[0] == (sums[1] - sums[0]) + nbytes


def test_run_is_extended_without_rewriting(training: Training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    encode_run(training.base, training.tuned[:2], run)
    before = {p: p.stat().st_mtime_ns for name in STEPS[:2] for p in (run / name).rglob("*")}
    # A checkpoint that was encoded need not be there any more.
    (training.tuned[0] / SINGLE).unlink()
    report = encode_run(training.base, training.tuned, run)
    assert [d.is_new for d in report.deltas] == [False, False, True]
    assert all(p.stat().st_mtime_ns == time for p, time in before.items() if p.is_file())
    again = encode_run(training.base, training.tuned, run)
    assert not any(d.is_new for d in again.deltas)


def test_each_delta_is_complete_when_it_appears(training: Training, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []

    def look(done: int, total: int) -> None:
        seen.append((done / total, folders(run)))

    encode_run(training.base, training.tuned, run, progress=look)
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert seen[-1][0] == 1
    # While the last checkpoint is encoded, the others are stored.
    assert seen[-1][1] == sorted(STEPS[:2])
    check(training, run, tmp_path / "alone")


def test_failed_checkpoint_keeps_the_other_deltas(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def fail_at_the_third(encoder: Encoder, *arguments: Any, **options: Any) -> int:  # noqa: ANN401
        if encoder.tuned.path.name == STEPS[2]:
            msg = "No space left on device"
            raise OutputError(msg)
        return encode_spans(encoder, *arguments, **options)

    monkeypatch.setattr(run_encoder, "encode_spans", fail_at_the_third)
    with pytest.raises(OutputError, match="No space left"):
        encode_run(training.base, training.tuned, run)
    assert folders(run) == sorted(STEPS[:2])
    monkeypatch.undo()
    report = encode_run(training.base, training.tuned, run)
    assert [d.is_new for d in report.deltas] == [False, False, True]
    check(training, run, tmp_path / "alone")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux to look")
def test_one_checkpoint_is_open_at_a_time(training: Training, tmp_path: Path) -> None:
    tuned = {str(checkpoint / SINGLE) for checkpoint in training.tuned}
    peak = 0

    def look(_done: int, _total: int) -> None:
        nonlocal peak
        links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        peak = max(peak, len(tuned.intersection(links)))

    encode_run(training.base, training.tuned, tmp_path / "run", progress=look)
    assert peak == 1


def test_natural_order_of_any_name() -> None:
    names = [f"step-{number}" for number in ("9", "10", "0011", "1" * 5000)]
    assert sorted([names[2], names[0], names[3], names[1]], key=natural_order) == names


# --- the command -------------------------------------------------------------------------------


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *map(str, arguments)],
        env={"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("last", [1, 2, 3])
def test_killed_run_is_resumed(training: Training, tmp_path: Path, last: int) -> None:
    run = tmp_path / "run"
    arguments: list[str | Path] = ["encode", training.base, *training.tuned, "-o", run, "-q"]
    assert command("-c", KILLED, str(last), *arguments).returncode == -9
    finished = folders(run)
    assert len(finished) == last - 1
    done = command("-m", "rlsparse_store", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert sum(delta["is_new"] for delta in report["deltas"]) == len(STEPS) - len(finished)
    check(training, run, tmp_path / "alone")
    assert folders(run) == sorted(STEPS)


def test_an_index_that_is_behind_is_written_anew(training: Training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    encode_run(training.base, training.tuned, run)
    index = (run / "run.json").read_bytes()
    # As a kill leaves it after an entry and before its row.
    behind = json.loads(index)
    behind["entries"].pop()
    (run / "run.json").write_text(json.dumps(behind))
    encode_run(training.base, training.tuned, run)
    assert (run / "run.json").read_bytes() == index


def test_what_killed_writers_left_is_removed(training: Training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    encode_run(training.base, training.tuned, run)
    before = contents(run).keys()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    for folder in (run, run / ".run", run / ".run" / "unlisted", run / ".run" / "pins"):
        folder.mkdir(exist_ok=True)
        (folder / f".run.json.tmp-{output._HOST}-{child.pid}").touch()
    encode_run(training.base, training.tuned, run)
    assert [re.sub(r"\d+$", "", name) for name in contents(run)] == [
        re.sub(r"\d+$", "", name) for name in before
    ]


def test_an_index_that_cannot_be_read_is_not_damaged(training: Training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    encode_run(training.base, training.tuned, run)
    (run / "run.json").unlink()
    (run / "run.json").mkdir()
    done = command("-m", "rlsparse_store", "inspect", run)
    assert done.returncode == 1
    assert done.stderr == f"rlsparse: {run / 'run.json'}: cannot be read (Is a directory)\n"


def test_the_command_lists_a_run(training: Training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = command("-m", "rlsparse_store", "encode", training.base, *training.tuned, "-o", run)
    assert done.returncode == 0
    assert f"wrote 3 deltas in {run}" in done.stdout
    assert "kept" not in done.stdout
    for report in (done, command("-m", "rlsparse_store", "inspect", run)):
        lines = [line.split() for line in report.stdout.splitlines()]
        found = [line[0] for line in lines if line and line[0] in STEPS]
        assert found == list(STEPS)
    table = json.loads(command("-m", "rlsparse_store", "inspect", run, "--json").stdout)
    assert table["schema_version"] == 1
    assert [d["name"] for d in table["deltas"]] == list(STEPS)
    # One more checkpoint for a folder that is a run joins it.
    more = save(tmp_path / "step-300", later(base_tensors(), 8))
    done = command("-m", "rlsparse_store", "encode", training.base, more, "-o", run, "-q")
    assert f"wrote 1 delta in {run}\n  kept 3, not compared" in done.stdout


def test_run_of_one_checkpoint(training: Training, tmp_path: Path) -> None:
    encode: list[str | Path] = ["-m", "rlsparse_store", "encode", training.base]
    alone = command(*encode, training.tuned[0], "-o", tmp_path / "delta")
    assert alone.returncode == 0
    refused = command(*encode, *training.tuned, "-o", tmp_path / "delta")
    assert refused.returncode == 1
    assert "move it into a folder of that name, and start runs with --run" in refused.stderr
    assert command(*encode, training.tuned[0], "--run", "-o", tmp_path / "run").returncode == 0
    assert command(*encode, *training.tuned, "-o", tmp_path / "run").returncode == 0
    check(training, tmp_path / "run", tmp_path / "alone")


def test_a_rewritten_checkpoint_is_another_entry_of_its_name(
    training: Training, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    encode_run(training.base, training.tuned, run)
    # Newer, but the same: kept.
    os.utime(training.tuned[1] / SINGLE, (time.time() + 60,) * 2)
    report = encode_run(training.base, training.tuned, run)
    assert not any(d.is_new for d in report.deltas)
    assert folders(run) == sorted(STEPS)
    (training.tuned[1] / SINGLE).write_bytes(file_bytes(later(base_tensors(), 9)))
    os.utime(training.tuned[1] / SINGLE, (time.time() + 60,) * 2)
    report = encode_run(training.base, training.tuned, run)
    named = [(d.name, d.folder, d.is_new) for d in report.deltas]
    assert named[1:3] == [("step-10", "step-10", False), ("step-10", "step-10.2", True)]
    assert "stays in step-10 until it is pruned" in report.deltas[2].notes[-1]
    assert report.deltas[1].tuned_digest != report.deltas[2].tuned_digest
    apply_delta(run / "step-10.2", tmp_path / "out", base=training.base)
    assert (tmp_path / "out" / SINGLE).read_bytes() == (training.tuned[1] / SINGLE).read_bytes()
    # What it was encoded from is as old as its delta: nothing to do.
    os.utime(training.tuned[1] / SINGLE, (time.time() - 60,) * 2)
    assert not any(d.is_new for d in encode_run(training.base, training.tuned, run).deltas)


def test_progress_counts_the_bytes_of_the_checkpoints(training: Training, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    encode_run(
        training.base,
        training.tuned,
        tmp_path / "run",
        progress=lambda done, total: seen.append((done, total)),
    )
    side = (training.base / SINGLE).stat().st_size
    assert seen[-1][0] == seen[-1][1]
    assert 0.9 < seen[-1][1] / (side * len(STEPS)) <= 1


# --- what is refused ---------------------------------------------------------------------------


def test_command_rejects_options_without_meaning_for_a_run(
    training: Training, tmp_path: Path
) -> None:
    encode_run(training.base, training.tuned, tmp_path / "run")
    page = tmp_path / "page.html"
    asked = ("inspect", tmp_path / "run", "--rank", "--report", page)
    done = command("-m", "rlsparse_store", *asked)
    assert done.returncode == 2
    assert "add --subfolder NAME" in done.stderr
    assert not page.exists()


def test_a_run_has_one_base(training: Training, tmp_path: Path) -> None:
    run = tmp_path / "run"
    encode_run(training.base, training.tuned[:1], run)
    other = save(tmp_path / "other", later(base_tensors(), 3))
    for _ in range(2):
        with pytest.raises(BaseMismatchError, match="another base"):
            encode_run(other, training.tuned[1:2], run)
        assert folders(run) == [STEPS[0]]
    encode_delta(other, training.tuned[1], run / STEPS[1])
    with pytest.raises(BaseMismatchError, match="another base"):
        encode_run(training.base, training.tuned[:2], run)


def test_two_checkpoints_of_one_name_are_refused(training: Training, tmp_path: Path) -> None:
    twin = save(tmp_path / "elsewhere" / STEPS[0], base_tensors())
    with pytest.raises(CheckpointError, match=STEPS[0]):
        encode_run(training.base, [training.tuned[0], twin], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_delta_is_not_a_run(training: Training, tmp_path: Path) -> None:
    encode_delta(training.base, training.tuned[0], tmp_path / "delta")
    with pytest.raises(OutputError, match="is a delta"):
        encode_run(training.base, training.tuned[1:], tmp_path / "delta")
    with pytest.raises(NotFoundError, match="is not a run"):
        inspect_run(tmp_path / "delta")


def test_nothing_is_written_if_a_checkpoint_is_broken(training: Training, tmp_path: Path) -> None:
    (training.tuned[1] / SINGLE).write_bytes(b"broken")
    with pytest.raises(RlsparseError):
        encode_run(training.base, training.tuned, tmp_path / "run")
    assert not (tmp_path / "run").exists()
