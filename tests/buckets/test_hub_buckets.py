"""Buckets on the Hub: read by the real client, and never written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hub_commands import fail, succeed
from loopback_hub import READER, Bucket, LoopbackHub
from pairs import bf16_tensor, contents, save, tune

from rlsparse_store.buckets.bucket_url import BucketUrl, parse_bucket_url
from rlsparse_store.delta import encode_delta, encode_run
from rlsparse_store.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

URL = "hf://buckets/me/store/runs"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def places(tmp_path: Path, hub: LoopbackHub) -> Path:
    """A base and a delta of two shards, here and in a bucket."""
    base = {name: bf16_tensor(i, 700, 512) for i, name in enumerate("abcd")}
    tuned = {name: tune(t, 3, density=0.2) for name, t in base.items()}
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", tuned)
    (tmp_path / "tuned" / "config.json").write_text("{}")
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", shard_bytes=100_000)
    bucket = hub.buckets["me/store"] = Bucket()
    for name in ("base", "delta"):
        files = contents(tmp_path / name)
        bucket.files |= {f"runs/{name}/{path}": data for path, data in files.items()}
    bucket.files["runs/delta-other/notes.txt"] = b"beside it"
    return tmp_path


def test_reading_by_the_commands(places: Path, hub: LoopbackHub, home: Path) -> None:
    cache = {"RLSPARSE_CACHE": str(places / "cache")}
    named = succeed(hub, home, "inspect", f"{URL}/delta", "--json", **cache)
    local = succeed(hub, home, "inspect", places / "delta", "--json", **cache)
    assert json.loads(named.stdout) == json.loads(local.stdout)
    whole = sum(len(data) for data in contents(places / "delta").values())
    read = sum(span(r.range) for r in hub.requests if r.path.startswith("/xet/"))
    assert 0 < read < whole, "headers and index"
    base = ("--base", f"{URL}/base")
    succeed(hub, home, "apply", f"{URL}/delta", *base, "-o", places / "out", **cache)
    assert contents(places / "out") == contents(places / "tuned")
    succeed(hub, home, "verify", f"{URL}/delta", *base, **cache)
    assert not hub.leaks, "a token went to another host"


def test_a_run_that_was_copied(places: Path, hub: LoopbackHub, home: Path) -> None:
    tuned = [places / "tuned"]
    encode_run(places / "base", tuned, places / "run", metrics={"reward": 0.5})
    files = contents(places / "run")
    hub.buckets["me/store"].files |= {f"run/{path}": data for path, data in files.items()}
    listed = json.loads(succeed(hub, home, "inspect", "hf://buckets/me/store/run", "--json").stdout)
    (entry,) = listed["deltas"]
    assert (entry["folder"], entry["metrics"]) == ("tuned", {"reward": 0.5})
    said = fail(1, hub, home, "prune", "hf://buckets/me/store/run", "--pin", "tuned")
    assert "buckets of the Hub are read and not written" in said


def span(asked: str | None) -> int:
    first, last = (asked or "bytes=0--1").removeprefix("bytes=").split("-", 1)
    return int(last) + 1 - int(first)


READ = """
import hashlib, os, sys
from rlsparse_store import open_delta
with open_delta(sys.argv[1] + "/delta", base=sys.argv[1] + "/base", framework="bits") as tuned:
    first = tuned["a"].tobytes()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        ok = tuned["b"].tobytes() != first
        os._exit(0 if ok else 1)
    print(hashlib.sha256(first).hexdigest())
"""


def test_one_tensor_and_a_fork(places: Path, hub: LoopbackHub, home: Path) -> None:
    import hashlib  # noqa: PLC0415 - of one test

    done = subprocess.run(
        [sys.executable, "-P", "-c", READ, URL],
        env={
            "PATH": os.defpath,
            **hub.environment(home),
            "RLSPARSE_CACHE": str(places / "cache"),
        },
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    expected = tune(bf16_tensor(0, 700, 512), 3, density=0.2).data
    assert done.stdout.strip() == hashlib.sha256(expected).hexdigest()


FILE_SYSTEM = """
import sys
from huggingface_hub import HfFileSystem
files = HfFileSystem()
print(sorted(files.find("hf://buckets/me/store/runs/delta")))
print(files.cat_file("hf://buckets/me/store/runs/delta/config.json", start=0, end=1))
"""


def test_the_clients_own_file_system_reads_it(places: Path, hub: LoopbackHub, home: Path) -> None:
    """The loopback Hub answers as the client expects, or the tests above would prove little."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", FILE_SYSTEM],
        env={"PATH": os.defpath, **hub.environment(home)},
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found, start = done.stdout.splitlines()
    names = sorted(f"buckets/me/store/runs/delta/{name}" for name in contents(places / "delta"))
    assert (found, start) == (repr(names), repr(b"{"))


@pytest.mark.parametrize("fault", ["503", "dropped", "truncated"])
@pytest.mark.parametrize("on", ["/tree/", "/buckets/me/store/resolve", "/xet/"])
def test_a_fault_that_passes(
    places: Path, hub: LoopbackHub, home: Path, fault: str, on: str
) -> None:
    hub.fail(fault, on)
    cache = {"RLSPARSE_CACHE": str(places / "cache")}
    succeed(hub, home, "verify", f"{URL}/delta", "--base", places / "base", **cache)


def test_what_cannot_be_read(places: Path, hub: LoopbackHub, home: Path) -> None:
    said = fail(4, hub, home, "inspect", "hf://buckets/me/none/runs/delta")
    assert "hf://buckets/me/none" in said
    assert "no objects below" in fail(4, hub, home, "inspect", f"{URL}/none")
    hub.buckets["me/store"].private = True
    assert "hf://buckets/me/store" in fail(4, hub, home, "inspect", f"{URL}/delta", HF_TOKEN=READER)
    hub.buckets["me/store"].private = False
    hub.fail("403", "/buckets/me/store/resolve", times=1000)
    said = fail(1, hub, home, "inspect", f"{URL}/delta")
    assert "access token does not allow" in said
    hub.faults.clear()
    hub.fail("silence", "/tree/", times=1000)
    assert "did not answer" in fail(1, hub, home, "inspect", f"{URL}/delta")
    hub.faults.clear()
    said = fail(4, hub, home, "inspect", f"{URL}/delta", HF_HUB_OFFLINE="1")
    assert "offline" in said
    assert "hf://buckets/ORG/NAME" in fail(4, hub, home, "inspect", "hf://buckets/me")
    damaged = hub.buckets["me/store"].files
    name = min(path for path in damaged if "delta-00001-of-" in path)
    data = bytearray(damaged[name])
    data[-100] ^= 1
    damaged[name] = bytes(data)
    fail(3, hub, home, "verify", f"{URL}/delta", "--base", places / "base")


WRITE = """
import sys
from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.errors import BucketError
store = ObjectStore(parse_bucket_url(sys.argv[1]))
for write in (lambda: store.put("x", b"x"), lambda: store.delete(["delta"])):
    try:
        write()
    except BucketError as error:
        print(error)
"""


@pytest.mark.usefixtures("places")
def test_it_is_not_written(hub: LoopbackHub, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", WRITE, URL],
        env={"PATH": os.defpath, **hub.environment(home)},
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("buckets of the Hub are read and not written" in line for line in lines)
    assert not hub.requests


def test_urls() -> None:
    url = parse_bucket_url("hf://buckets/org/name/runs/a/")
    assert url == BucketUrl("hf", "buckets/org/name", "runs/a")
    assert url is not None
    assert str(url / "b") == "hf://buckets/org/name/runs/a/b"
    assert str(parse_bucket_url("hf://buckets/org/name")) == "hf://buckets/org/name"
    assert parse_bucket_url("hf://org/name") is None, "a repository"
    assert parse_bucket_url("hf://bucketsy/name") is None
    for wrong in (
        *("hf://buckets", "hf://buckets/", "hf://buckets/org", "hf://buckets/org/"),
        *("hf://buckets/org/name/../x", "hf://buckets/org/name//x", "hf://buckets/org/n?x=1"),
        "hf://buckets/-org/name",
    ):
        with pytest.raises(NotFoundError):
            parse_bucket_url(wrong)
