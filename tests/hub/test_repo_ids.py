"""Ids on the Hub, with the real client against a Hub over loopback, in real processes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from loopback_hub import NAMED, LoopbackHub, rlsparse
from pairs import contents

if TYPE_CHECKING:
    from pathlib import Path


def test_apply_and_verify_by_ids(pair: Path, hub: LoopbackHub) -> None:
    result = rlsparse(hub, pair / "home", "apply", NAMED, "-o", pair / "out")
    assert result.returncode == 0, result.stderr
    assert contents(pair / "out") == contents(pair / "tuned")
    hub.requests.clear()
    again = rlsparse(hub, pair / "home", "verify", NAMED, "--base", "org/base")
    assert again.returncode == 0, again.stderr
    assert not [path for _, path, _, _ in hub.requests if "safetensors" in path]
    offline = rlsparse(hub, pair / "home", "verify", NAMED, "-b", "org/base", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_encode_from_ids_records_the_commit(pair: Path, hub: LoopbackHub) -> None:
    hub.commit("org/tuned", contents(pair / "tuned"))
    result = rlsparse(hub, pair / "home", "encode", "org/base", "org/tuned", "-o", pair / "new")
    assert result.returncode == 0, result.stderr
    assert contents(pair / "new") == contents(pair / "delta")


def test_a_run_of_ids(pair: Path, hub: LoopbackHub) -> None:
    hub.commit("org/step-1", contents(pair / "tuned"))
    commit = hub.commit("org/step-2", contents(pair / "tuned"))
    run, home = pair / "run", pair / "home"
    arguments = ("encode", "hf://org/base", "org/step-1", f"org/step-2@{commit}", "-o", run)
    result = rlsparse(hub, home, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    names = [entry["name"] for entry in json.loads(result.stdout)["deltas"]]
    assert names == ["step-1", f"step-2-{commit}"]
    for step, name in enumerate(names, 1):
        stored = contents(run / name)
        entry = json.loads(stored.pop("rlsparse/entry.json"))["entry"]
        assert (entry["name"], entry["step"]) == (name, step)
        assert stored == contents(pair / "delta")
    again = rlsparse(hub, home, *arguments, "--json", HF_HUB_OFFLINE="1")
    assert not any(entry["is_new"] for entry in json.loads(again.stdout)["deltas"])


def test_revisions_by_id_and_by_option(pair: Path, hub: LoopbackHub) -> None:
    commit = hub.repos[NAMED].refs["main"]
    hub.commit(NAMED, {"README.md": b"no delta any more"})
    by_option = rlsparse(hub, pair / "home", "inspect", NAMED, "--revision", commit, "--json")
    assert by_option.returncode == 0, by_option.stderr
    for place in (f"{NAMED}@{commit}", f"hf://{NAMED}@{commit}"):
        by_id = rlsparse(hub, pair / "home", "inspect", place, "--json")
        assert by_id.stdout == by_option.stdout
    local = rlsparse(hub, pair / "home", "inspect", pair / "delta", "--revision", commit)
    assert local.returncode == 4
    assert "is a local path, which has no revision" in local.stderr


def test_inspect_reads_no_chunks(pair: Path, hub: LoopbackHub) -> None:
    hub.requests.clear()
    result = rlsparse(hub, pair / "home", "inspect", NAMED, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["base_repo"] == "org/base"
    files = [
        asked
        for method, path, asked, _ in hub.requests
        if "safetensors" in path and method == "GET"
    ]
    assert files
    assert all(files)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "500", "503", "dropped"])
def test_a_fault_that_passes_is_got_over(pair: Path, hub: LoopbackHub, fault: str) -> None:
    hub.fail(fault, r"GET /large/.*safetensors$")
    result = rlsparse(hub, pair / "home", "apply", NAMED, "-o", pair / "out")
    assert result.returncode == 0, result.stderr
    assert contents(pair / "out") == contents(pair / "tuned")


@pytest.mark.parametrize(
    ("fault", "on", "code", "words"),
    [
        ("flipped", r"GET /large/org/delta", 3, "did not match the Hub's checksum"),
        ("flipped", r"GET /large/org/base", 3, "did not match the Hub's checksum"),
        ("gated", r"base/resolve", 4, "the base is gated: accept its terms"),
        ("403", "api/models/org/delta", 1, "access token does not allow"),
        ("500", "api/models", 1, "try again later"),
        ("silence", "api/models", 1, "did not answer"),
        ("silence", "delta/resolve", 1, "did not answer"),
    ],
)
def test_a_lasting_fault_is_one_line(
    pair: Path, hub: LoopbackHub, fault: str, on: str, code: int, words: str
) -> None:
    hub.fail(fault, on, times=1000)
    begun = time.monotonic()
    arguments = ("apply", NAMED, "-o", pair / "out")
    result = rlsparse(hub, pair / "home", *arguments, RLSPARSE_HUB_TIMEOUT="5")
    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert words in result.stderr
    assert not (pair / "out").exists()
    assert time.monotonic() - begun < 60


def test_what_is_not_there(pair: Path, hub: LoopbackHub) -> None:
    for delta in ("org/nothing", f"{NAMED}@nowhere", "org/base"):
        result = rlsparse(hub, pair / "home", "inspect", delta)
        assert result.returncode == 4, result.stderr
        assert result.stderr.count("\n") == 1
