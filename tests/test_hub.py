"""Ids on the Hub, with the real client against a Hub over loopback, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from loopback_hub import TOKEN, LoopbackHub
from pairs import bf16_tensor, contents, save, tune

from rlsparse_store.delta import encode_delta

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMED = "org/delta"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def pair(tmp_path: Path, hub: LoopbackHub) -> Path:
    """A base on the Hub, a delta that names it, and the tuned folder that is expected."""
    base = {"a": bf16_tensor(0, 300, 200), "still": bf16_tensor(1, 200, 100)}
    tuned = save(tmp_path / "tuned", {**base, "a": tune(base["a"], 3)})
    (tuned / "config.json").write_text("{}")
    sha = hub.commit("org/base", contents(save(tmp_path / "base", base)))
    named = tmp_path / "models--org--base" / "snapshots" / sha
    named.parent.mkdir(parents=True)
    (tmp_path / "base").rename(named)
    encode_delta(named, tuned, tmp_path / "delta")
    hub.commit(NAMED, contents(tmp_path / "delta"))
    return tmp_path


def rlsparse(
    hub: LoopbackHub, home: Path, *arguments: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)],
        env={"PATH": os.defpath, **hub.environment(home), **more},
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=100,
    )
    assert TOKEN not in result.stdout + result.stderr
    return result


def test_apply_and_verify_by_ids(pair: Path, hub: LoopbackHub) -> None:
    result = rlsparse(hub, pair / "home", "apply", NAMED, "-o", pair / "out")
    assert result.returncode == 0, result.stderr
    assert contents(pair / "out") == contents(pair / "tuned")
    hub.requests.clear()
    again = rlsparse(hub, pair / "home", "verify", NAMED, "--base", "org/base")
    assert again.returncode == 0, again.stderr
    assert not [path for _, path, _ in hub.requests if "safetensors" in path]
    offline = rlsparse(hub, pair / "home", "verify", NAMED, "-b", "org/base", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_encode_from_ids_records_the_commit(pair: Path, hub: LoopbackHub) -> None:
    hub.commit("org/tuned", contents(pair / "tuned"))
    result = rlsparse(hub, pair / "home", "encode", "org/base", "org/tuned", "-o", pair / "new")
    assert result.returncode == 0, result.stderr
    assert contents(pair / "new") == contents(pair / "delta")


def test_inspect_reads_no_chunks(pair: Path, hub: LoopbackHub) -> None:
    hub.requests.clear()
    result = rlsparse(hub, pair / "home", "inspect", NAMED, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["base_repo"] == "org/base"
    files = [asked for _, path, asked in hub.requests if "safetensors" in path]
    assert files
    assert all(files)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "500", "503", "dropped"])
def test_a_fault_that_passes_is_got_over(pair: Path, hub: LoopbackHub, fault: str) -> None:
    hub.fail(fault, r"resolve/.*safetensors$", times=2 if fault == "flipped" else 1)
    result = rlsparse(hub, pair / "home", "apply", NAMED, "-o", pair / "out")
    assert result.returncode == 0, result.stderr
    assert contents(pair / "out") == contents(pair / "tuned")


@pytest.mark.parametrize(
    ("fault", "on", "code", "words"),
    [
        ("flipped", r"delta/resolve", 1, "not what the Hub says"),
        ("flipped", r"base/resolve", 1, "not what the Hub says"),
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
