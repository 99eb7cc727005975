"""Recording where the base of a delta is, after it was uploaded again or squashed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hub_commands import fail, succeed
from loopback_hub import NAMED, LoopbackHub
from pairs import bf16_tensor, contents, file_bytes, save, save_sharded, tune

from rlsparse_store.delta import encode_delta, encode_run, inspect_delta, verify_run

if TYPE_CHECKING:
    from pathlib import Path

BASE = {"a": bf16_tensor(0, 300, 200), "still": bf16_tensor(1, 200, 100)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def base_folder(pair: Path) -> Path:
    (base,) = pair.glob("models--org--base/snapshots/*")
    return base


@pytest.fixture
def run(pair: Path) -> Path:
    """A run of three deltas against the base on the Hub."""
    steps = [
        save(pair / f"step-{step}", {**BASE, "a": tune(BASE["a"], step)}) for step in (1, 2, 3)
    ]
    encode_run(base_folder(pair), steps, pair / "run")
    return pair / "run"


def squash(hub: LoopbackHub) -> str:
    """Replace the history of the base by one commit with the same files, and another card."""
    files = {**hub.files("org/base"), "README.md": b"squashed"}
    repo = hub.repos["org/base"]
    repo.commits.clear()
    repo.refs.clear()
    return hub.commit("org/base", files)


def hints(run: Path) -> set[tuple[str | None, str | None]]:
    reports = [inspect_delta(path.parent) for path in run.glob("*/rlsparse")]
    return {(report.base_repo, report.base_revision) for report in reports}


def test_a_run_of_a_squashed_base(run: Path, hub: LoopbackHub, home: Path) -> None:
    before = {e.name: e for e in map(inspect_entry, sorted(run.glob("step-*")))}
    shutil.copytree(run, run.parent / "copy")
    sha = squash(hub)
    done = succeed(hub, home, "rebase-hint", run, "--base", "org/base@main", "--json")
    report = json.loads(done.stdout)
    assert report["rewritten"] == ["step-1", "step-2", "step-3"]
    assert report["base_revision"] == sha
    assert hints(run) == {("org/base", sha)}
    verified = verify_run(run, base=base_folder(run.parent))
    assert len(verified.entries) == 3
    after = {e.name: e for e in map(inspect_entry, sorted(run.glob("step-*")))}
    assert after.keys() == before.keys()
    for name, entry in after.items():
        assert entry.digests == before[name].digests
    # What it writes does not depend on who writes it, and once is enough.
    succeed(hub, home, "rebase-hint", run.parent / "copy", "--base", "org/base")
    assert entries(run.parent / "copy") == entries(run)
    again = succeed(hub, home, "rebase-hint", run, "-b", "org/base", "--base-revision", sha)
    assert again.stdout == f"rewrote 0 of 3 deltas: the base is org/base@{sha}, content compared\n"
    succeed(hub, home, "apply", run / "step-2", "-o", run.parent / "out")
    assert contents(run.parent / "out") == contents(run.parent / "step-2")


def entries(run: Path) -> dict[str, bytes]:
    return {n: d for n, d in contents(run).items() if not n.startswith(".run")}


class inspect_entry:  # noqa: N801 - a record of a delta's digests
    def __init__(self, delta: Path) -> None:
        report = inspect_delta(delta)
        self.name = delta.name
        self.digests = (report.tuned_digest, report.base_digest, report.changed)


def test_a_base_that_was_uploaded_elsewhere(pair: Path, hub: LoopbackHub, home: Path) -> None:
    """The content decides: not the name, nor how it is divided into files."""
    sharded = save_sharded(pair / "sharded", {"a": BASE["a"]}, {"still": BASE["still"]})
    sha = hub.commit("new/home", contents(sharded))
    del hub.repos["org/base"]
    assert "no such Hub repository" in fail(
        4, hub, home, "apply", pair / "delta", "-o", pair / "out"
    )
    done = succeed(hub, home, "rebase-hint", pair / "delta", "--base", "hf://new/home")
    assert done.stdout == f"rewrote the delta: the base is new/home@{sha}, content compared\n"
    succeed(hub, home, "apply", pair / "delta", "-o", pair / "out")
    assert contents(pair / "out") == contents(pair / "tuned")
    again = succeed(hub, home, "rebase-hint", pair / "delta", "--base", "new/home")
    assert again.stdout.startswith("rewrote nothing")


@pytest.mark.parametrize("what", ["values", "more", "fewer", "shape"])
def test_other_content_changes_nothing(
    run: Path, hub: LoopbackHub, home: Path, tmp_path: Path, what: str
) -> None:
    tensors = {
        "values": {**BASE, "still": tune(BASE["still"], 1, 1e-4)},
        "more": {**BASE, "extra": bf16_tensor(5, 2, 2)},
        "fewer": {"a": BASE["a"]},
        "shape": {**BASE, "still": bf16_tensor(1, 100, 200)},
    }[what]
    assert file_bytes(tensors) != file_bytes(BASE)
    hub.commit("org/other", contents(save(tmp_path / "other", tensors)))
    before = contents(run)
    said = fail(3, hub, home, "rebase-hint", run, "--base", "org/other")
    assert "has other content than the base of this delta; nothing was written" in said
    assert contents(run) == before


def test_only_the_last_file_is_replaced(pair: Path, hub: LoopbackHub, home: Path) -> None:
    both = {"a": bf16_tensor(3, 300, 200), "still": bf16_tensor(4, 200, 100)}
    encode_delta(base_folder(pair), save(pair / "both", both), pair / "many", shard_bytes=1)
    before = contents(pair / "many")
    sha = squash(hub)
    succeed(hub, home, "rebase-hint", pair / "many", "--base", "org/base")
    after = contents(pair / "many")
    assert [name for name in after if after[name] != before.get(name)] == [
        "rlsparse/delta-00002-of-00002.safetensors"
    ]
    assert after.keys() == before.keys()
    succeed(hub, home, "verify", pair / "many", "--base", "org/base", "--tuned", pair / "both")
    assert inspect_delta(pair / "many").base_revision == sha


def test_an_entry_of_a_run_keeps_the_index_right(run: Path, hub: LoopbackHub, home: Path) -> None:
    squash(hub)
    done = succeed(hub, home, "rebase-hint", run / "step-2", "--base", "org/base")
    assert done.stdout.startswith("rewrote the delta")
    verify_run(run)
    assert len(hints(run)) == 2


def test_on_the_hub_by_pull_and_push(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run, "me/run")
    sha = squash(hub)
    said = fail(4, hub, home, "rebase-hint", "me/run", "--base", "org/base")
    assert "is on the Hub: pull it" in said
    out = run.parent / "pulled"
    succeed(hub, home, "pull", "me/run", "-o", out)
    succeed(hub, home, "rebase-hint", out, "--base", "org/base")
    report = json.loads(succeed(hub, home, "push", out, "me/run", "--json").stdout)
    assert report["added"] == []
    assert report["base_revision"] == sha
    listed = json.loads(succeed(hub, home, "inspect", "me/run", "--json").stdout)["deltas"]
    assert [entry["folder"] for entry in listed] == ["step-1", "step-2", "step-3"]
    assert f"at commit `{sha}`" in hub.files("me/run")["README.md"].decode()
    succeed(hub, home, "apply", "me/run", "--subfolder", "step-3", "-o", run.parent / "out")
    assert contents(run.parent / "out") == contents(run.parent / "step-3")


def test_what_cannot_be_recorded(pair: Path, hub: LoopbackHub, home: Path) -> None:
    delta = pair / "delta"
    said = fail(4, hub, home, "rebase-hint", delta, "--base", base_folder(pair))
    assert "is a local path, which is never recorded" in said
    assert "no such Hub repository" in fail(4, hub, home, "rebase-hint", delta, "-b", "org/none")
    said = fail(4, hub, home, "rebase-hint", pair / "tuned", "-b", "org/base")
    assert "rlsparse/" in said
    succeed(hub, home, "inspect", NAMED)
    succeed(hub, home, "apply", NAMED, "-o", pair / "out")
    (cached,) = home.glob("hub/models--org--delta/snapshots/*")
    said = fail(1, hub, home, "rebase-hint", cached, "-b", "org/base")
    assert "is a link, as in the Hub's cache" in said


KILLED = """
import os, sys
from pathlib import Path
from rlsparse_store.delta import rebase_hint
left, replace = int(sys.argv[1]), Path.replace
def counted(self, target):
    global left
    if str(target).endswith(".safetensors"):
        left -= 1
        if left < 0:
            os._exit(9)
    return replace(self, target)
Path.replace = counted
rebase_hint(sys.argv[2], "org/base")
"""


@pytest.mark.parametrize("replaced", [0, 2])
def test_killed_and_repeated(run: Path, hub: LoopbackHub, home: Path, replaced: int) -> None:
    sha = squash(hub)
    killed = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(replaced), run],
        env={"PATH": os.defpath, **hub.environment(home)},
        check=False,
    )
    assert killed.returncode == 9
    assert len(hints(run)) == (2 if replaced else 1)
    for step in (1, 2, 3):
        succeed(hub, home, "verify", run / f"step-{step}", "--base", "org/base")
    succeed(hub, home, "rebase-hint", run, "--base", "org/base")
    assert hints(run) == {("org/base", sha)}
    verify_run(run)
    assert not [path for path in run.rglob("*.tmp-*") if path.is_file()]
