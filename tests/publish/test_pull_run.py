"""Pulling entries of a run: which ones, into which folder, with which base."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hub_clients import clients, home, hub, run  # noqa: F401 - fixtures
from hub_commands import fail, succeed
from pairs import bf16_tensor, contents, save, tune

from rlsparse_store.delta import encode_run, inspect_run, prune_run, repair_run, verify_run
from rlsparse_store.delta.entry_choice import choose_entries
from rlsparse_store.delta.run_files import IndexRow
from rlsparse_store.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from loopback_hub import LoopbackHub


@pytest.fixture
def pushed(run: Path, hub: LoopbackHub, home: Path) -> Path:
    """A run of four entries on the Hub, two of them with metrics."""
    (base,) = run.parent.glob("models--org--base/snapshots/*")
    for step, reward in ((11, 0.5), (12, 0.25)):
        tensors = {"a": tune(bf16_tensor(0, 300, 200), step), "still": bf16_tensor(1, 200, 100)}
        place = save(run.parent / f"step-{step}", tensors)
        encode_run(base, [place], run, metrics={"reward": reward})
    shutil.rmtree(run / "step-2")
    repair_run(run)
    prune_run(run, pin=["step-11"])
    succeed(hub, home, "push", run, "me/run")
    return run


def entries(run: Path) -> dict[str, bytes]:
    """The files of a run's entries, without the cards that a repository adds."""
    return {n: d for n, d in contents(run).items() if "/" in n and not n.startswith(".run")}


def pull(hub: LoopbackHub, home: Path, *arguments: str | Path) -> dict[str, Any]:
    done = succeed(hub, home, "pull", "me/run", *arguments, "--json")
    return dict(json.loads(done.stdout))


def test_the_whole_run(pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = pull(hub, home, "-o", out)
    assert report["deltas"] == ["step-1", "step-10", "step-11", "step-12"]
    assert entries(out) == entries(pushed)
    assert (out / "run.json").read_bytes() == (pushed / "run.json").read_bytes()
    assert (out / "README.md").read_bytes() == hub.files("me/run")["README.md"]
    assert [e.is_pinned for e in inspect_run(out).deltas] == [False, False, True, False]
    verify_run(out)
    hub.requests.clear()
    again = pull(hub, home, "-o", out)
    assert (again["held"], again["files"]) == (again["deltas"], 0)
    assert not [r for r in hub.requests if "delta.safetensors" in r.path]
    said = succeed(hub, home, "pull", "me/run", "-o", out).stdout
    assert "0 of 4 deltas: 0 files" in said
    assert "4 deltas were pulled before" in said
    # What was pulled can be pushed again, and nothing of it is new.
    assert "is up to date" in succeed(hub, home, "push", out, "me/run").stdout


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["step-10"], ["step-10"]),
        (["last"], ["step-12"]),
        (["best:reward"], ["step-11"]),
        (["best:reward", "--min"], ["step-12"]),
        (["step-1?", "step-1"], ["step-1", "step-10", "step-11", "step-12"]),
    ],
)
def test_chosen_entries(
    pushed: Path,
    hub: LoopbackHub,
    home: Path,
    tmp_path: Path,
    only: list[str],
    expected: list[str],
) -> None:
    options = [part for word in only for part in ([word] if word == "--min" else ["--only", word])]
    hub.requests.clear()
    assert pull(hub, home, "-o", tmp_path / "out", *options)["deltas"] == expected
    asked = {r.path.split("/")[-3] for r in hub.requests if r.path.endswith("delta.safetensors")}
    assert asked == set(expected)
    own = {n: d for n, d in entries(pushed).items() if n.partition("/")[0] in expected}
    assert entries(tmp_path / "out") == own
    verify_run(tmp_path / "out")


def test_later_pulls_add_entries(
    pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pull(hub, home, "-o", out, "--only", "step-12")
    pull(hub, home, "-o", out, "--only", "step-1", "--only", "step-12")
    assert [e.name for e in inspect_run(out).deltas] == ["step-1", "step-12"]
    pull(hub, home, "-o", out)
    assert entries(out) == entries(pushed)
    verify_run(out)


def test_an_entry_replaces_no_other(
    pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    (base,) = pushed.parent.glob("models--org--base/snapshots/*")
    other = {"a": tune(bf16_tensor(0, 300, 200), 99), "still": bf16_tensor(1, 200, 100)}
    encode_run(base, [save(tmp_path / "more" / "step-11", other)], tmp_path / "out")
    mine = entries(tmp_path / "out")
    report = pull(hub, home, "-o", tmp_path / "out", "--only", "step-11")
    assert report["deltas"] == ["step-11.2"]
    assert mine.items() <= entries(tmp_path / "out").items()
    assert [e.name for e in inspect_run(tmp_path / "out").deltas] == ["step-11", "step-11"]
    assert pull(hub, home, "-o", tmp_path / "out", "--only", "step-11")["held"] == ["step-11.2"]


def test_what_cannot_be_pulled(pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = fail(4, hub, home, "pull", "me/run", "-o", out, "--only", "step-7")
    assert "has no entry step-7" in said
    said = fail(4, hub, home, "pull", "me/run", "-o", out, "--only", "best:loss")
    assert "no entry has the metric loss; there are: reward" in said
    said = fail(4, hub, home, "pull", "org/delta", "-o", out, "--only", "last")
    assert "is a single delta" in said
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = fail(1, hub, home, "pull", "me/run", "-o", tmp_path / "mine")
    assert "exists and is not a run" in said
    said = fail(1, hub, home, "pull", "me/run", "-o", pushed / "step-1")
    assert "is a delta, not a run" in said
    base = save(tmp_path / "another", {"a": bf16_tensor(7, 300, 200)})
    tuned = save(tmp_path / "tuned-1", {"a": tune(bf16_tensor(7, 300, 200), 1)})
    encode_run(base, [tuned], tmp_path / "foreign")
    said = fail(3, hub, home, "pull", "me/run", "-o", tmp_path / "foreign")
    assert "holds deltas of another base" in said


def test_a_damaged_entry_is_not_listed(
    pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    files = dict(hub.files("me/run"))
    name = "step-10/rlsparse/delta.safetensors"
    damaged = bytearray(files[name])
    damaged[len(damaged) // 2] ^= 1
    hub.commit("me/run", {**files, name: bytes(damaged)})
    fail(3, hub, home, "pull", "me/run", "-o", tmp_path / "out")
    assert [e.name for e in inspect_run(tmp_path / "out").deltas] == ["step-1"]
    verify_run(tmp_path / "out")
    hub.commit("me/run", files)
    pull(hub, home, "-o", tmp_path / "out")
    assert entries(tmp_path / "out") == entries(pushed)


def test_an_index_that_lies(pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    files = dict(hub.files("me/run"))
    tuned = inspect_run(pushed).deltas[0].tuned_digest
    index = files["run.json"].replace(tuned.encode(), b"0" * 64)
    hub.commit("me/run", {**files, "run.json": index})
    said = fail(3, hub, home, "pull", "me/run", "-o", tmp_path / "out", "--only", "step-1")
    assert "run.json: says of the entry step-1 what its delta does not" in said


def test_the_base_comes_along(pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = pull(hub, home, "-o", out, "--only", "last", "--with-base")
    assert "models--org--base/snapshots/" in report["base"]
    succeed(hub, home, "apply", out / "step-12", "-o", tmp_path / "whole", HF_HUB_OFFLINE="1")
    assert contents(tmp_path / "whole") == contents(pushed.parent / "step-12")
    # The run itself, offline, from the cache.
    hub.requests.clear()
    report = pull(hub, home, "-o", tmp_path / "again", "--local-files-only", "--with-base")
    assert report["deltas"] == ["step-12"]
    assert report["revision"] == hub.repos["me/run"].refs["main"]
    assert entries(tmp_path / "again") == entries(out)
    assert not hub.requests


@pytest.mark.usefixtures("pushed")
def test_a_base_of_other_content(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    base = hub.repos["org/base"]
    wrong = {"a": bf16_tensor(9, 300, 200), "still": bf16_tensor(1, 200, 100)}
    base.commits[base.refs["main"]] = contents(save(tmp_path / "wrong", wrong))
    said = fail(3, hub, home, "pull", "me/run", "-o", tmp_path / "out", "--with-base")
    assert "wrong base" in said


def test_killed_pulls_are_continued(
    pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("step-10", "step-12"):
        hub.fail("silence", f"GET /large/me/run/.*{name}/")
        hub.requests.clear()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlsparse_store", "pull", "me/run", "-o", str(out)],
            env={"PATH": os.defpath, **hub.environment(home)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while not any(f"{name}/rlsparse" in r.path for r in hub.requests if "/large/" in r.path):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        verify_run(out)
        found = [e.name for e in inspect_run(out).deltas]
        assert found == ["step-1", "step-10", "step-11"][: 1 if name == "step-10" else 3]
    report = pull(hub, home, "-o", out)
    assert report["held"] == ["step-1", "step-10", "step-11"]
    assert entries(out) == entries(pushed)
    assert not [path for path in out.iterdir() if ".tmp-" in path.name]


def test_a_run_in_a_folder(pushed: Path, hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    succeed(hub, home, "push", pushed, "me/runs", "--subfolder", "a/b")
    assert "a/b/run.json" in hub.files("me/runs")
    assert [name for name in hub.files("me/runs") if name.startswith("a/b/.run/pins/")]
    done = succeed(hub, home, "pull", "me/runs", "--subfolder", "a/b", "-o", tmp_path / "out")
    assert "4 of 4 deltas" in done.stdout
    assert entries(tmp_path / "out") == entries(pushed)
    assert inspect_run(tmp_path / "out").deltas[2].is_pinned


@pytest.mark.parametrize(
    "command",
    [
        ("pull", "me/run", "-o", "s3://bucket/run"),
        ("pull", "hf://buckets/me/store/run", "-o", "out"),
        ("push", "s3://bucket/run", "me/run"),
        ("rebase-hint", "gs://bucket/run", "--base", "org/base"),
    ],
)
def test_urls_of_object_storage(hub: LoopbackHub, home: Path, command: tuple[str, ...]) -> None:
    said = fail(4, hub, home, *command)
    assert "is a URL of object storage, and a local folder is needed here" in said
    assert not hub.requests


def row(folder: str, step: int | None, **metrics: float) -> IndexRow:
    return IndexRow(
        folder=folder,
        name=folder.partition(".")[0],
        tuned=f"{hash(folder) % 10**9:064}",
        step=step,
        metrics=metrics,
        base="0" * 64,
        elements=1,
        changed=1,
        delta_bytes=1,
        tuned_bytes=1,
    )


def test_choosing_entries() -> None:
    rows = [row("a", 5, loss=1.0), row("b", 9, loss=0.5), row("b.2", 9, loss=0.5), row("last-1", 7)]

    def chosen(*only: str, best: Literal["max", "min"] = "max") -> list[str]:
        return [row.folder for row in choose_entries(rows, only, best, "run")]

    assert chosen() == ["a", "b", "b.2", "last-1"]
    assert chosen("b") == ["b"], "a folder"
    assert chosen("last") == ["b.2"], "the highest step, and the current entry of it"
    assert chosen("best:loss") == ["a"]
    assert chosen("best:loss", best="min") == ["b.2"], "the last of equals"
    assert chosen("b*", "a") == ["a", "b", "b.2"], "in the order of the run"
    assert chosen(rows[3].tuned) == ["last-1"]
    for wrong in ("c", "best:reward", "[", "last-2"):
        with pytest.raises(NotFoundError):
            chosen(wrong)
    without = [row("x", None), row("y", 3)]
    assert choose_entries(without, ["last"], "max", "run") == without[1:]
    named = [row("last", 1), row("z", 2)]
    assert choose_entries(named, ["last"], "max", "run") == named[:1], "a name comes first"
