"""Pushing runs: index, pins, only what is new, and others who push at the same time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hub_clients import clients, home, hub, run  # noqa: F401 - fixtures
from hub_commands import fail, succeed
from pairs import bf16_tensor, contents, save, tune

from rlsparse_store.delta import encode_run, inspect_run, prune_run
from rlsparse_store.delta.run_files import IndexRow
from rlsparse_store.publish.entry_folders import choose_folders

if TYPE_CHECKING:
    from pathlib import Path

    from loopback_hub import LoopbackHub


def base_of(run: Path) -> Path:
    (base,) = run.parent.glob("models--org--base/snapshots/*")
    return base


def add_step(run: Path, step: int, seed: int | None = None, **metrics: float) -> None:
    """Encode another checkpoint into a run."""
    tuned = {"a": tune(bf16_tensor(0, 300, 200), seed or step), "still": bf16_tensor(1, 200, 100)}
    shutil.rmtree(run.parent / f"step-{step}", ignore_errors=True)
    place = save(run.parent / f"step-{step}", tuned)
    encode_run(base_of(run), [place], run, metrics=metrics)


def listed(hub: LoopbackHub, home: Path, repo: str = "me/run") -> list[dict[str, Any]]:
    found = json.loads(succeed(hub, home, "inspect", repo, "--json").stdout)
    return list(found["deltas"])


def names(hub: LoopbackHub, home: Path, repo: str = "me/run") -> list[str]:
    return [entry["folder"] for entry in listed(hub, home, repo)]


def test_the_index_is_published(run: Path, hub: LoopbackHub, home: Path) -> None:
    add_step(run, 11, reward=0.75)
    succeed(hub, home, "push", run, "me/run")
    assert hub.files("me/run")["run.json"] == (run / "run.json").read_bytes()
    hub.requests.clear()
    found = listed(hub, home)
    read = [r.path.partition("/resolve/")[2] for r in hub.requests if "/resolve/" in r.path]
    assert read == [f"{hub.repos['me/run'].refs['main']}/run.json"], "one request, not one each"
    own = inspect_run(run).as_json()["deltas"]
    assert found == own
    assert found[-1]["metrics"] == {"reward": 0.75}


def test_the_card_has_metrics(run: Path, hub: LoopbackHub, home: Path) -> None:
    add_step(run, 11, reward=0.75, kl=0.0123456789)
    succeed(hub, home, "push", run, "me/run")
    card = hub.files("me/run")["README.md"].decode()
    assert "| delta | kl | reward | weights |" in card
    assert re.search(r"^\| step-11 \| 0\.0123457 \| 0\.75 \| 80,000 \|", card, re.MULTILINE)
    assert re.search(r"^\| step-1 \|  \|  \| 80,000 \|", card, re.MULTILINE)


def test_only_what_is_new_is_sent(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run, "me/run")
    before = hub.files("me/run")
    add_step(run, 11)
    hub.requests.clear()
    report = json.loads(succeed(hub, home, "push", run, "me/run", "--json").stdout)
    sent = {upload["path"] for upload in report["uploads"]}
    new = {f"step-11/rlsparse/{name}" for name in ("delta.safetensors", "entry.json")}
    assert sent - {"density.png"} == {*new, "run.json", "README.md"}
    assert report["added"] == ["step-11"]
    uploads = sum(request.method == "PUT" for request in hub.requests)
    assert uploads == len(sent & {"step-11/rlsparse/delta.safetensors", "density.png"})
    after = hub.files("me/run")
    assert {n: d for n, d in after.items() if n.startswith("step-")}.items() >= {
        n: d for n, d in before.items() if n.startswith("step-")
    }.items()
    hub.requests.clear()
    assert "is up to date" in succeed(hub, home, "push", run, "me/run").stdout
    assert hub.sent == 0


def test_an_index_is_added_to_an_earlier_run(run: Path, hub: LoopbackHub, home: Path) -> None:
    """A run that an earlier version published has none."""
    succeed(hub, home, "push", run, "me/run")
    files = {name: data for name, data in hub.files("me/run").items() if name != "run.json"}
    hub.commit("me/run", files)
    assert names(hub, home) == ["step-1", "step-2", "step-10"]
    succeed(hub, home, "push", run, "me/run")
    assert hub.files("me/run")["run.json"] == (run / "run.json").read_bytes()


@pytest.mark.parametrize("index", [b"{", b'{"rlsparse_run": 1, "entries": []}'])
def test_a_wrong_index_is_replaced(run: Path, hub: LoopbackHub, home: Path, index: bytes) -> None:
    succeed(hub, home, "push", run, "me/run")
    hub.commit("me/run", {**hub.files("me/run"), "run.json": index})
    if index == b"{":
        assert "me/run@" in (said := fail(3, hub, home, "inspect", "me/run"))
        assert "run.json: is not an index" in said
    else:
        assert names(hub, home) == ["step-1", "step-2", "step-10"], "entries are the truth"
    succeed(hub, home, "push", run, "me/run")
    assert hub.files("me/run")["run.json"] == (run / "run.json").read_bytes()


def test_a_single_delta_joins_the_index(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run, "me/run")
    add_step(run, 11, reward=1.0)
    succeed(hub, home, "push", run / "step-11", "me/run", "--subfolder", "step-11")
    assert hub.files("me/run")["run.json"] == (run / "run.json").read_bytes()
    succeed(hub, home, "push", run / "step-11", "me/run", "--subfolder", "sub/step-11")
    assert "sub/run.json" not in hub.files("me/run")
    assert [entry["folder"] for entry in listed(hub, home)][-1] == "sub/step-11"
    assert listed(hub, home)[-1]["metrics"] == {"reward": 1.0}, "its note has them"


def test_another_checkpoint_of_a_name_replaces_nothing(
    run: Path, hub: LoopbackHub, home: Path
) -> None:
    """Two machines continue one run, and both write step 11."""
    succeed(hub, home, "push", run, "me/run")
    other = run.parent / "other"
    shutil.copytree(run, other)
    add_step(run, 11)
    add_step(other, 11, seed=99)
    succeed(hub, home, "push", run, "me/run")
    mine = hub.files("me/run")["step-11/rlsparse/delta.safetensors"]
    succeed(hub, home, "push", other, "me/run")
    assert names(hub, home) == ["step-1", "step-2", "step-10", "step-11", "step-11.2"]
    assert [entry["name"] for entry in listed(hub, home)][-2:] == ["step-11"] * 2
    files = hub.files("me/run")
    assert files["step-11/rlsparse/delta.safetensors"] == mine
    theirs = (other / "step-11/rlsparse/delta.safetensors").read_bytes()
    assert files["step-11.2/rlsparse/delta.safetensors"] == theirs
    hub.requests.clear()
    for place in (run, other):
        assert "is up to date" in succeed(hub, home, "push", place, "me/run").stdout
    assert hub.sent == 0


def test_entries_that_were_pruned_here_stay(run: Path, hub: LoopbackHub, home: Path) -> None:
    prune_run(run, pin=["step-1"])
    succeed(hub, home, "push", run, "me/run")
    prune_run(run, keep_last=1, unpin=["step-1"], grace_seconds=0)
    add_step(run, 11)
    succeed(hub, home, "push", run, "me/run")
    assert names(hub, home) == ["step-1", "step-2", "step-10", "step-11"]
    dry = json.loads(
        succeed(hub, home, "push", run, "me/run", "--prune", "--dry-run", "--json").stdout
    )
    assert dry["pruned"] == ["step-2"]
    before = hub.repos["me/run"].refs["main"]
    out = succeed(hub, home, "push", run, "me/run", "--prune").stdout
    assert re.search(r"step-2/rlsparse/delta\.safetensors +removed", out)
    assert names(hub, home) == ["step-1", "step-10", "step-11"], "step-1 is pinned there"
    assert not [name for name in hub.files("me/run") if name.startswith("step-2/")]
    card = hub.files("me/run")["README.md"].decode()
    assert re.findall(r"^\| (step-\d+) ", card, re.MULTILINE) == ["step-1", "step-10", "step-11"]
    assert "step-2/rlsparse/delta.safetensors" in hub.repos["me/run"].commits[before]
    used = fail_usage(hub, home, "push", run / "step-10", "me/run", "--prune")
    assert "--prune removes entries of a run" in used


def fail_usage(hub: LoopbackHub, home: Path, *arguments: str | Path) -> str:
    environment = {"PATH": os.defpath, **hub.environment(home)}
    command = [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 2
    return done.stderr


def test_pins_are_published_and_removed(run: Path, hub: LoopbackHub, home: Path) -> None:
    prune_run(run, pin=["step-2"])
    succeed(hub, home, "push", run, "me/run")
    assert [e["is_pinned"] for e in listed(hub, home)] == [False, True, False]
    (pin,) = [name for name in hub.files("me/run") if name.startswith(".run/")]
    assert hub.files("me/run")[pin] == b"step-2"
    assert pin == f".run/pins/{inspect_run(run).deltas[1].tuned_digest}"
    prune_run(run, unpin=["step-2"])
    assert "is up to date" in succeed(hub, home, "push", run, "me/run").stdout
    succeed(hub, home, "push", run, "me/run", "--prune")
    assert pin not in hub.files("me/run")
    assert names(hub, home) == ["step-1", "step-2", "step-10"]


def test_no_writer_loses_anything(run: Path, hub: LoopbackHub, home: Path) -> None:
    """Six machines push at once, the first of them creating the repository."""
    places = []
    for step in range(20, 26):
        place = run.parent / f"run-{step}"
        shutil.copytree(run, place)
        add_step(place, step, reward=float(step))
        places.append(place)

    with ThreadPoolExecutor(len(places)) as pool:
        done = list(pool.map(lambda place: push(hub, home, place), places))
    for result in done:
        # One that was overtaken five times says so, and can be repeated.
        assert result.returncode == 0 or "someone else wrote" in result.stderr, result.stderr
    for place, result in zip(places, done, strict=True):
        if result.returncode:
            succeed(hub, home, "push", place, "me/run")
    steps = [1, 2, 10, *range(20, 26)]
    assert names(hub, home) == [f"step-{step}" for step in steps]
    index = json.loads(hub.files("me/run")["run.json"])
    assert [row["step"] for row in index["entries"]] == steps
    assert index["entries"][-1]["metrics"] == {"reward": 25.0}
    card = hub.files("me/run")["README.md"].decode()
    assert re.findall(r"^\| step-(\d+) ", card, re.MULTILINE) == [str(step) for step in steps]
    for place in places:
        own = {n: d for n, d in contents(place).items() if n.startswith("step-")}
        assert own.items() <= hub.files("me/run").items()


def push(hub: LoopbackHub, home: Path, place: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, **hub.environment(home)}
    command = [sys.executable, "-P", "-m", "rlsparse_store", "push", str(place), "me/run"]
    return subprocess.run(command, env=environment, capture_output=True, check=False, text=True)


def test_another_commit_in_between(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run, "me/run")
    add_step(run, 11)

    def interfere() -> None:
        hub.before_commit = lambda: None
        hub.commit("me/run", {**hub.files("me/run"), "notes.txt": b"by someone else"})

    hub.before_commit = interfere
    succeed(hub, home, "push", run, "me/run")
    assert hub.files("me/run")["notes.txt"] == b"by someone else"
    assert names(hub, home)[-1] == "step-11"


def test_thousands_of_files_are_one_commit(run: Path, hub: LoopbackHub, home: Path) -> None:
    for number in range(300):
        (run / "step-1" / f"chat_template_{number}.jinja").write_text(f"{number}")
    hub.requests.clear()
    report = json.loads(succeed(hub, home, "push", run, "me/run", "--json").stdout)
    assert len(report["uploads"]) > 300
    assert len(hub.repos["me/run"].commits) == 2
    assert sum("preupload" in r.path for r in hub.requests) <= 10
    assert hub.files("me/run")["step-1/chat_template_299.jinja"] == b"299"
    out = succeed(hub, home, "push", run, "me/again", "--dry-run").stdout
    assert out.count("\n") < 20, "folders, not files"


def row(folder: str, tuned: str, name: str | None = None) -> IndexRow:
    return IndexRow(
        folder=folder,
        name=name or folder,
        tuned=tuned * 64,
        base="0" * 64,
        elements=1,
        changed=1,
        delta_bytes=1,
        tuned_bytes=1,
    )


def test_folders_of_entries_in_another_run() -> None:
    mine = [row("a", "1"), row("b", "2"), row("a.2", "3", "a"), row("a.3", "1", "a")]
    assert choose_folders(mine, []) == {r.folder: r.folder for r in mine}
    assert choose_folders(mine, mine) == {r.folder: r.folder for r in mine}
    held = [row("a", "3"), row("b", "9"), row("a.2", "1", "a")]
    assert choose_folders(mine, held, {"b.2"}) == {
        "a": "a.2",
        "b": "b.3",
        "a.2": "a",
        "a.3": "a.3",
    }
