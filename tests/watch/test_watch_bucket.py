"""Watching for a run in a bucket: its state, outages, several watchers, and kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bucket_view import BucketView
from loopback_s3 import LoopbackS3, rlsparse
from pairs import SINGLE
from watch_rig import Rig, kinds, new_rig

from rlsparse_store.delta import apply_delta, inspect_run, prune_run
from rlsparse_store.delta.run import place_of
from rlsparse_store.errors import BucketServerError, RunLockedError
from rlsparse_store.watch import WatchEvent, watch_checkpoints
from rlsparse_store.watch.thinning import NOTE_NAME

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return new_rig(tmp_path)


@pytest.fixture
def url(s3: LoopbackS3) -> str:
    return f"{s3.url}/runs/a"


def watching(rig: Rig, url: str, **options: Any) -> Generator[WatchEvent, None, None]:  # noqa: ANN401
    return watch_checkpoints(rig.folder, rig.base, url, settle_seconds=0, threads=1, **options)


def watch(rig: Rig, url: str) -> list[WatchEvent]:
    return list(watching(rig, url, once=True))


def names(url: str) -> list[str]:
    return [entry.name for entry in inspect_run(url).deltas]


def test_checkpoints_are_stored_once(rig: Rig, s3: LoopbackS3, url: str, tmp_path: Path) -> None:
    first = rig.write("Trainer", 1)
    command: list[str | Path] = [
        "watch",
        rig.folder,
        "--base",
        rig.base,
        "-o",
        url,
        "--once",
        "--json",
    ]
    done = rlsparse(s3, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["kind"] for line in done.stdout.splitlines()] == ["stored"]
    rig.write("Trainer", 2)
    assert kinds(watch(rig, url)) == ["stored"]
    assert watch(rig, url) == []
    assert names(url) == ["checkpoint-1", "checkpoint-2"]
    # A pruned entry is not stored again, on another machine either.
    prune_run(url, keep_last=1)
    assert watch(rig, url) == []
    done = rlsparse(s3, tmp_path, *command, RLSPARSE_CACHE=str(tmp_path / "elsewhere"))
    assert (done.returncode, done.stdout) == (0, "")
    view = BucketView(s3.bucket)
    view.copy("runs/a", tmp_path / "copy")
    (folder,) = (tmp_path / "copy").glob("checkpoint-1.1-*")
    apply_delta(folder, tmp_path / "rebuilt", base=rig.base)
    assert (tmp_path / "rebuilt" / SINGLE).read_bytes() == (first / SINGLE).read_bytes()


def test_without_its_state_entries_tell_what_is_stored(rig: Rig, s3: LoopbackS3, url: str) -> None:
    place = rig.write("Trainer", 1)
    os.utime(place / SINGLE, (0, 0))
    watch(rig, url)
    for text in (b"", b"{", b'{"checkpoint-1": 1}'):
        BucketView(s3.bucket).put("runs/a/.run/watch/seen.json", text)
        assert watch(rig, url) == []
    assert names(url) == ["checkpoint-1"]


def test_an_outage_is_waited_for(
    rig: Rig, s3: LoopbackS3, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsparse_store.watch.watcher._RETRY_SECONDS", 0.1)
    monkeypatch.setenv("RLSPARSE_BUCKET_TIMEOUT", "1")
    rig.write("Trainer", 1)
    events = watching(rig, url)
    assert next(events).kind == "stored"
    rig.write("Trainer", 2)
    s3.fail("503", ".*", times=10_000)
    event = next(events)
    assert (event.kind, "503" in event.message) == ("waiting", True)
    with pytest.raises(BucketServerError):
        watch(rig, url.replace("/a", "/b"))
    s3.faults.clear()
    assert next(events).kind == "stored"
    events.close()
    assert names(url) == ["checkpoint-1", "checkpoint-2"]


def test_two_watchers(
    rig: Rig, s3: LoopbackS3, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        rig.write("Trainer", number)
    events = watching(rig, url)
    next(events)
    with pytest.raises(RunLockedError):
        watch(rig, url)
    # Of other runs, and on another machine, others may watch, and write at any time.
    assert kinds(watch(rig, f"{s3.url}/runs/b")) == ["stored", "stored"]
    monkeypatch.setenv("RLSPARSE_CACHE", str(tmp_path / "elsewhere"))
    with place_of(url).write():
        assert kinds(watch(rig, url)) == ["stored"]
    events.close()
    assert names(url) == ["checkpoint-1", "checkpoint-2"]
    assert watch(rig, url) == []


KILLED = """
import sys
from pathlib import Path
from bucket_kills import die_at
from rlsparse_store.watch import watch_checkpoints

folder, base, url, number = sys.argv[1:]
die_at(int(number), is_after=int(number) % 2 == 0)
for _ in watch_checkpoints(folder, base, url, settle_seconds=0, once=True, threads=1):
    pass
print("done")
"""


def test_killed_watchers_are_continued(rig: Rig, s3: LoopbackS3, url: str, tmp_path: Path) -> None:
    env = {"PATH": os.defpath, **s3.environment(tmp_path)}
    env["PYTHONPATH"] = str(Path(__file__).parents[1] / "support")
    for number in range(1, 14):
        rig.write("Trainer", number)
        command: list[str | Path] = [
            sys.executable,
            "-c",
            KILLED,
            rig.folder,
            rig.base,
            url,
            str(number),
        ]
        done = subprocess.run(command, env=env, check=False, capture_output=True, timeout=100)
        assert done.returncode == -9 or done.stdout == b"done\n", done.stderr
    watch(rig, url)
    assert names(url) == [f"checkpoint-{number}" for number in range(1, 14)]
    assert not list((tmp_path / "cache" / "staging").iterdir())


def test_weights_that_a_bucket_stores_are_thinned(rig: Rig, url: str) -> None:
    first, second = rig.write("Trainer", 1), rig.write("Trainer", 2)
    before = (first / SINGLE).read_bytes()
    events = list(watching(rig, url, once=True, thin=1, yes=True))
    assert kinds(events) == ["stored", "stored", "thinned"]
    assert (not (first / SINGLE).exists(), (second / SINGLE).exists()) == (True, True)
    note = json.loads((first / NOTE_NAME).read_text())
    assert note["delta"] == f"{url}/{inspect_run(url).deltas[0].folder}"
    apply_delta(note["delta"], rig.base.parent / "rebuilt", base=rig.base)
    assert (rig.base.parent / "rebuilt" / SINGLE).read_bytes() == before
