"""Runs as a whole: retention, repair, the index, notes, pins, and one writer at a time."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pairs import save_training

from rlsparse_store.analysis.run_diff import diff_entries
from rlsparse_store.analysis.series import measure_series
from rlsparse_store.delta import encode_run, inspect_run, prune_run, repair_run, verify_run
from rlsparse_store.delta.run_files import EntryNote, write_note
from rlsparse_store.errors import (
    CheckpointError,
    FormatError,
    NotFoundError,
    OutputError,
    RunError,
    RunLockedError,
)
from rlsparse_store.files.writer_lock import STALE_SECONDS, WriterLock

STEPS = (10, 20, 30, 40, 50)
REWARDS = (0.1, 0.5, 0.9, 0.3, 0.2)


def names(run: Path) -> list[str]:
    return [entry.folder for entry in inspect_run(run).deltas]


def step(number: int) -> str:
    return f"checkpoint-{number}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, checkpoints with the state of their trainer, and their run."""
    root = tmp_path_factory.mktemp("trained")
    logs = {
        number: [{"step": 5, "reward": 9.0}, {"step": number, "reward": reward, "loss": math.nan}]
        for number, reward in zip(STEPS, REWARDS, strict=True)
    }
    save_training(root / "base", root / "trainer", logs)
    encode_run(root / "base", [root / "trainer"], root / "run")
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "run", tmp_path / "run")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)],
        env={"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


# --- what belongs to an entry --------------------------------------------------------------------


def test_step_metrics_and_parent_are_kept_with_each_entry(run: Path) -> None:
    entries = inspect_run(run).deltas
    assert [e.step for e in entries] == list(STEPS)
    assert [e.metrics for e in entries] == [{"reward": reward} for reward in REWARDS]
    parents = [None, *(e.tuned_digest for e in entries[:-1])]
    assert [e.parent for e in entries] == parents
    # All of it is in the entries: the index may be lost, and moved entries keep it.
    (run / "run.json").unlink()
    shutil.rmtree(run / ".run")
    assert inspect_run(run).deltas == entries


def test_a_metric_is_given_by_hand(trained: Path, tmp_path: Path) -> None:
    place, run = trained / "trainer" / step(10), tmp_path / "run"
    encode: list[str | Path] = ["encode", trained / "base", place, "-o", run, "--metric"]
    assert command(*encode, "pass@1=0.25", "--run").returncode == 0
    assert inspect_run(run).deltas[0].metrics == {"reward": 0.1, "pass@1": 0.25}
    for wrong in ("pass", "=1", "x=nan", "x=much"):
        assert command(*encode, wrong, "--run").returncode == 2
    assert command(*encode, "x=1").returncode == 0  # it is a run by now
    assert command(*encode[:3], "-o", tmp_path / "delta", "--metric", "x=1").returncode == 2
    with pytest.raises(CheckpointError, match="belong to one checkpoint"):
        encode_run(trained / "base", [trained / "trainer"], tmp_path / "all", metrics={"x": 1})


def test_a_broken_trainer_state_is_refused(trained: Path, tmp_path: Path) -> None:
    place = shutil.copytree(trained / "trainer" / step(10), tmp_path / step(10))
    for text in ("{", "[]", '{"log_history": 3}', '{"log_history": [3]}'):
        (place / "trainer_state.json").write_text(text)
        with pytest.raises(CheckpointError, match="not the state of a trainer"):
            encode_run(trained / "base", [place], tmp_path / "run")


# --- retention -----------------------------------------------------------------------------------


def test_rules_keep_what_they_name(run: Path) -> None:
    rules: dict[str, Any] = {"keep_last": 1, "keep_every": 20, "keep_best": "reward"}
    wanted = [step(20), step(30), step(40), step(50)]
    planned = prune_run(run, **rules, dry_run=True)
    assert (planned.kept, planned.unlisted) == (wanted, [step(10)])
    assert names(run) == [step(number) for number in STEPS]
    assert prune_run(run, **rules).kept == wanted
    assert names(run) == wanted
    assert prune_run(run, keep_best="reward", best="min").kept == [step(50)]


def test_entries_are_unlisted_first_and_removed_later(run: Path) -> None:
    report = prune_run(run, keep_last=2)
    assert report.unlisted == [step(10), step(20), step(30)]
    # A reader that opened one can go on.
    assert all((run / folder / "rlsparse").is_dir() for folder in report.unlisted)
    assert prune_run(run).removed == []
    assert prune_run(run, grace_seconds=0).removed == report.unlisted
    assert not any((run / folder).exists() for folder in report.unlisted)
    assert list((run / ".run" / "unlisted").iterdir()) == []
    assert list((run / ".run" / "swept").iterdir()) == []
    assert names(run) == repair_run(run).entries == [step(40), step(50)]


def test_a_mark_that_the_index_does_not_know_of_yet(run: Path) -> None:
    # As a writer leaves it that is killed between the two.
    marks = run / ".run" / "unlisted"
    marks.mkdir(parents=True, exist_ok=True)
    (marks / step(10)).touch()
    assert prune_run(run, grace_seconds=0).removed == [step(10)]
    assert names(run) == [step(number) for number in STEPS[1:]]


def test_pins_keep_entries(run: Path) -> None:
    prune_run(run, pin=[step(10)])
    assert names(run) == [step(number) for number in STEPS]
    assert prune_run(run, keep_last=1).kept == [step(10), step(50)]
    assert [entry.is_pinned for entry in inspect_run(run).deltas] == [True, False]
    assert prune_run(run, keep_last=1, unpin=[step(10)]).kept == [step(50)]
    with pytest.raises(NotFoundError, match="has no entry"):
        prune_run(run, pin=[step(10)])


def test_an_older_entry_of_a_name_goes_unless_it_is_pinned(trained: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained, work)
    run, again = work / "run", work / "trainer" / step(20)
    shutil.copy(work / "trainer" / step(50) / "model.safetensors", again)
    os.utime(again / "model.safetensors", (time.time() + 60,) * 2)
    encode_run(work / "base", [again], run)
    assert names(run)[1:3] == [step(20), f"{step(20)}.2"]
    assert prune_run(run, keep_every=20, dry_run=True).kept == [f"{step(20)}.2", step(40)]
    kept = prune_run(run, keep_every=20, pin=[step(20)]).kept
    assert kept == [step(20), f"{step(20)}.2", step(40)]


def test_a_name_that_was_unlisted_comes_again(trained: Path, run: Path) -> None:
    prune_run(run, keep_last=1)
    report = encode_run(trained / "base", [trained / "trainer"], run)
    assert [e.folder for e in report.deltas if e.is_new] == [f"{step(n)}.2" for n in STEPS[:-1]]
    prune_run(run, grace_seconds=0)
    assert len(names(run)) == len(STEPS)


def test_the_command_prunes_and_repairs(run: Path) -> None:
    done = command("prune", run, "--keep-best", "reward", "--dry-run")
    assert done.returncode == 0
    assert "would be unlisted: checkpoint-10" in done.stdout
    done = command("prune", run, "--keep-best", "reward", "--min", "--json")
    assert json.loads(done.stdout)["kept"] == [step(10)]
    done = command("prune", run, "--keep-best", "accuracy")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "there are: reward" in done.stderr
    assert command("prune", run / "none", "--keep-last", "1").returncode == 4
    (run / "run.json").write_text("{")
    assert command("inspect", run).returncode == 3
    done = command("runs", "repair", run)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"indexed {run}: 1 in all")
    assert command("inspect", run).returncode == 0


# --- looking at a run ----------------------------------------------------------------------------


def test_tables_of_a_run(run: Path) -> None:
    table = command("inspect", run).stdout.splitlines()
    assert table[0].split()[-1] == "reward"
    assert table[3].split()[-1] == "0.9"
    lines = command("inspect", run, "--csv").stdout.splitlines()
    assert len(lines) == 1 + len(STEPS)
    assert lines[3].startswith("checkpoint-30,checkpoint-30,30,")
    assert lines[3].endswith(",0.9")
    summary = command("inspect", run, "--summary").stdout
    assert "reward: 0.1 first, 0.2 last, 0.1 to 0.9" in summary
    assert command("inspect", run / step(10), "--summary").returncode == 2


def test_a_run_is_drawn(trained: Path, tmp_path: Path) -> None:
    # Names of metrics come from a trainer's files, and may be anything.
    run, pictures, page = tmp_path / "run", tmp_path / "pictures", tmp_path / "page.html"
    encode_run(
        trained / "base", [trained / "trainer" / step(20)], run, metrics={"$\\frac$<b>../": 0.5}
    )
    done = command("inspect", run, "--plot", pictures, "--report", page)
    assert done.returncode == 0, done.stderr
    drawn = sorted(path.name for path in pictures.iterdir() if path.suffix == ".png")
    assert drawn[:2] == ["density.png", "metric-1.png"]
    text = page.read_text("utf-8")
    assert "&lt;b&gt;../" in text
    assert "<b>" not in text
    assert "1 checkpoints in" not in text
    again = command("inspect", run, "--plot", pictures)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_entries_are_applied_by_name(trained: Path, run: Path, tmp_path: Path) -> None:
    only: list[str | Path] = ["--only", step(20), "--only", step(40), "--base", trained / "base"]
    done = command("apply", run, "-o", tmp_path / "out", *only)
    assert done.returncode == 0, done.stderr
    for number in (20, 40):
        place = Path(step(number), "model.safetensors")
        assert (tmp_path / "out" / place).read_bytes() == (trained / "trainer" / place).read_bytes()
    done = command("apply", run, "-o", tmp_path / "none", "--only", step(20), "--only", "x")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert not (tmp_path / "none").exists()
    done = command("apply", run, "-o", tmp_path / "none", "--only", "../trainer")
    assert done.returncode == 4


def test_a_run_is_verified(trained: Path, run: Path) -> None:
    assert command("verify", run).stdout == "ok: 5 entries: the deltas' own files\n"
    done = command("verify", run, "--base", trained / "base", "--json")
    assert [entry["decoded"] for entry in json.loads(done.stdout)["entries"].values()] == [True] * 5
    assert command("verify", run, "--base", trained / "trainer" / step(10)).returncode == 3
    assert command("verify", run, "--tuned", trained / "base").returncode == 2
    edit_index(run, changed=3)
    done = command("verify", run)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "disagrees with the entry checkpoint-10" in done.stderr
    repair_run(run)
    shard = run / step(30) / "rlsparse" / "delta.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert command("verify", run).returncode == 3


def test_parents_that_lead_back_stop_nothing(trained: Path, run: Path) -> None:
    first, second = inspect_run(run).deltas[:2]
    for folder, tuned, parent in (
        (first.folder, first.tuned_digest, second.tuned_digest),
        (second.folder, second.tuned_digest, second.tuned_digest),
    ):
        write_note(run / folder, EntryNote(name=folder, tuned=tuned, parent=parent))
    assert repair_run(run).changed == [first.folder, second.folder]
    assert len(verify_run(run, base=trained / "base").entries) == len(STEPS)
    assert len(names(run)) == len(STEPS)


def test_two_entries_differ(trained: Path, run: Path) -> None:
    report = diff_entries(run, step(10), step(20), base=trained / "base")
    series = measure_series([run], base=trained / "base")
    assert (report.words, report.moved) == (series.words, series.steps[1].moved)
    assert report.differing == ["layers.0.weight", "layers.1.weight"]
    alone = diff_entries(run, step(10), step(10))
    assert (alone.equal, alone.differing, alone.moved) == (2, [], None)
    done = command("diff", run, step(10), step(50), "--base", trained / "base")
    assert "words differ (" in done.stdout
    assert "0 tensors are equal, 2 differ" in command("diff", run, step(10), step(50)).stdout
    assert command("diff", run, step(10), "none").returncode == 4


# --- what strangers and accidents put into a run -------------------------------------------------


def edit_index(run: Path, **fields: Any) -> None:  # noqa: ANN401
    """Change the first row of the index."""
    index = json.loads((run / "run.json").read_text())
    index["entries"][0] |= fields
    (run / "run.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "fields",
    [
        {"folder": "../elsewhere"},
        {"folder": "a/b"},
        {"folder": ".."},
        {"folder": ""},
        {"folder": "/etc"},
        {"folder": ".run"},
        {"folder": "a\u0000b"},
        {"folder": 3},
        {"folder": step(20)},
        {"tuned": "0"},
        {"parent": "../x"},
        {"step": -1},
        {"step": True},
        {"elements": -1},
        {"changed": 1.5},
        {"metrics": {"x": "1"}},
        {"metrics": []},
        {"name": ""},
    ],
    ids=str,
)
def test_a_hostile_index_is_refused(run: Path, fields: dict[str, Any]) -> None:
    edit_index(run, **fields)
    for act in (inspect_run, lambda run: prune_run(run, keep_last=1)):
        with pytest.raises(RunError, match="runs repair") as caught:
            act(run)
        assert "\n" not in str(caught.value)
    assert len(repair_run(run).entries) == len(STEPS)
    assert len(names(run)) == len(STEPS)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"rlsparse_run": 2, "entries": []}', b"\xff", b"[" * 100_000, b"{" * 999],
    ids=lambda text: repr(text[:20]),
)
def test_an_index_that_is_none_is_refused(run: Path, text: bytes) -> None:
    (run / "run.json").write_bytes(text)
    with pytest.raises(RunError, match="is not an index"):
        inspect_run(run)
    repair_run(run)
    assert len(names(run)) == len(STEPS)


def test_an_entry_whose_folder_is_gone(run: Path) -> None:
    shutil.rmtree(run / step(30))
    with pytest.raises(RunError, match="names checkpoint-30, whose folder is gone"):
        inspect_run(run)
    assert repair_run(run).dropped == [step(30)]
    assert len(names(run)) == len(STEPS) - 1


def test_an_entry_whose_files_are_gone(run: Path) -> None:
    (run / step(30) / "rlsparse" / "delta.safetensors").unlink()
    with pytest.raises(FormatError):
        repair_run(run)
    (run / "run.json").unlink()
    with pytest.raises(FormatError):
        inspect_run(run)


@pytest.mark.parametrize("damage", ["flip", "swap", "cut", "long"])
def test_a_damaged_note_is_refused(run: Path, damage: str) -> None:
    note = run / step(30) / "rlsparse" / "entry.json"
    text = note.read_bytes()
    if damage == "flip":
        note.write_bytes(text.replace(b"0.9", b"0.8"))
    elif damage == "swap":
        note.write_bytes((run / step(20) / "rlsparse" / "entry.json").read_bytes())
    elif damage == "cut":
        note.write_bytes(text[:-9])
    else:
        note.write_bytes(text + b" " * (64 << 10))
    with pytest.raises(RunError, match=r"entry.json"):
        repair_run(run)


def test_a_linked_entry_is_removed_without_what_it_leads_to(run: Path, tmp_path: Path) -> None:
    shutil.move(run / step(10), tmp_path / "elsewhere")
    (run / step(10)).symlink_to(tmp_path / "elsewhere")
    prune_run(run, keep_last=1)
    prune_run(run, grace_seconds=0)
    assert not (run / step(10)).is_symlink()
    assert (tmp_path / "elsewhere" / "rlsparse" / "delta.safetensors").exists()


def test_what_is_left_of_a_swept_entry_is_removed(run: Path) -> None:
    left = run / ".run" / "swept" / step(10) / "rlsparse"
    left.mkdir(parents=True)
    (left / "delta.safetensors").touch()
    prune_run(run)
    assert list((run / ".run" / "swept").iterdir()) == []


# --- one writer ----------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_readers_are_not(trained: Path, run: Path) -> None:
    with WriterLock(run / ".run", run):
        done = command("prune", run, "--keep-last", "1")
        assert done.returncode == 1
        assert f"process {os.getpid()}" in done.stderr
        with pytest.raises(RunLockedError):
            encode_run(trained / "base", [trained / "trainer"], run)
        assert len(names(run)) == len(STEPS)
    assert prune_run(run, keep_last=1).kept == [step(50)]


def lock_of(folder: Path, **fields: Any) -> Path:  # noqa: ANN401
    """A lock as another process left it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock-000007"
    own = {"host": "other", "process": 1, "released": False, "space": "elsewhere", "started": "1"}
    lock.write_text(json.dumps(own | fields))
    return lock


def test_locks_of_other_machines_are_stale_once_they_are_old(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / ".run")
    with (
        pytest.raises(RunLockedError, match="process 1 on other"),
        WriterLock(tmp_path / ".run", tmp_path),
    ):
        pass
    os.utime(lock, (time.time() - STALE_SECONDS - 5,) * 2)
    with WriterLock(tmp_path / ".run", tmp_path):
        assert [path.name for path in (tmp_path / ".run").iterdir()] == ["lock-000008"]


def test_a_damaged_lock_is_stale_once_it_is_old(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / ".run")
    lock.write_bytes(b"\xff")
    with pytest.raises(RunLockedError), WriterLock(tmp_path / ".run", tmp_path):
        pass
    os.utime(lock, (time.time() - STALE_SECONDS - 5,) * 2)
    with WriterLock(tmp_path / ".run", tmp_path):
        pass


def test_a_writer_that_was_overtaken_publishes_nothing(tmp_path: Path) -> None:
    with WriterLock(tmp_path / ".run", tmp_path) as first:
        (tmp_path / ".run" / "lock-000001").rename(tmp_path / ".run" / "lock-000002")
        with pytest.raises(RunLockedError, match="took over"):
            first.require_held()
        assert "released" in (tmp_path / ".run" / "lock-000002").read_text()


def test_a_lock_that_could_not_be_released_does_not_lock_its_own_process_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".run"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    lock = WriterLock(folder, tmp_path)
    with monkeypatch.context() as patched, pytest.raises(OutputError, match="no space"), lock:
        patched.setattr(os, "pwrite", full)
    assert b'"released":false' in (folder / "lock-000001").read_bytes()
    with WriterLock(folder, tmp_path):
        with pytest.raises(RunLockedError), WriterLock(folder, tmp_path):
            pass
        assert [path.name for path in folder.iterdir()] == ["lock-000002"]


RACE = """
import sys, time
from pathlib import Path
from rlsparse_store.errors import RunLockedError
from rlsparse_store.files.writer_lock import WriterLock
folder, rounds, held = Path(sys.argv[1]), int(sys.argv[2]), 0
end = time.monotonic() + 60
while held < rounds and time.monotonic() < end:
    try:
        with WriterLock(folder / ".run", folder):
            # Fails if another process holds the lock.
            (folder / "alone").touch(exist_ok=False)
            (folder / "alone").unlink()
            held += 1
    except RunLockedError:
        time.sleep(0.001)
print(held)
"""


def test_writers_exclude_each_other(tmp_path: Path) -> None:
    arguments = [sys.executable, "-P", "-c", RACE, str(tmp_path), "50"]
    racing = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in racing:
        out, err = process.communicate(timeout=100)
        assert (err, out) == ("", "50\n")


def test_a_run_that_cannot_be_locked(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run").write_text("a file")
    with pytest.raises(OutputError):
        encode_run(trained / "base", [trained / "trainer" / step(10)], run)


# --- killed writers ------------------------------------------------------------------------------


def test_killed_writers_tear_and_lose_nothing(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "run_kills.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, "60", "1"],
        env={"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    hit = json.loads(done.stdout)
    assert sum(hit.values()) == 60
    assert any("finished" not in what for what in hit)
