"""Runs in a bucket: entries, several writers, retention, faults and kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bucket_view import BucketView
from loopback_s3 import SECRETS, LoopbackS3, rlsparse
from pairs import SINGLE, Tensors, bf16_tensor, contents, save, save_training, tune

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.buckets.objects import Absent, ObjectVersion
from rlsparse_store.buckets.upload import upload_delta
from rlsparse_store.delta import (
    apply_delta,
    encode_delta,
    encode_run,
    inspect_run,
    prune_run,
    repair_run,
    run_bucket,
    run_objects,
    verify_run,
)
from rlsparse_store.delta.run_files import parse_index
from rlsparse_store.delta.run_objects import Index, whole_folders
from rlsparse_store.errors import (
    BaseMismatchError,
    BucketPermissionError,
    NotFoundError,
    OutputError,
    RunError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.buckets.connection import Condition

STEPS = (10, 20, 30)


def step(number: int) -> str:
    return f"checkpoint-{number}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another one, and checkpoints with the state of their trainer."""
    root = tmp_path_factory.mktemp("trained")
    save(root / "other", {f"layers.{n}.weight": bf16_tensor(n + 5, 60, 64) for n in range(2)})
    logs = {number: [{"reward": number / 100}] for number in STEPS}
    for folder in save_training(root / "base", root / "trainer", logs).values():
        (folder / "config.json").write_text("{}")
    return root


@pytest.fixture
def view(s3: LoopbackS3) -> BucketView:
    return BucketView(s3.bucket)


def url_of(s3: LoopbackS3) -> str:
    return f"s3://{s3.bucket}/runs/a"


def encode(trained: Path, url: str, *numbers: int) -> list[str]:
    """Encode checkpoints, and return the folders of the new entries."""
    places = [trained / "trainer" / step(number) for number in numbers or STEPS]
    return [e.folder for e in encode_run(trained / "base", places, url).deltas if e.is_new]


def folders(url: str) -> list[str]:
    return [entry.folder for entry in inspect_run(url).deltas]


def names(url: str) -> list[str]:
    return [entry.name for entry in inspect_run(url).deltas]


def check(view: BucketView, trained: Path, tmp_path: Path) -> list[str]:
    """Require that all that the run lists is whole and right. Returns the names of its entries."""
    copy = tmp_path / f"copy-{time.monotonic_ns()}"
    view.copy("runs/a", copy)
    rows = parse_index((copy / "run.json").read_bytes(), "run.json").rows
    for row in rows:
        out = copy / "out" / row.folder
        apply_delta(copy / row.folder, out, base=trained / "base")
        tuned = trained / "trainer" / row.name
        assert (out / SINGLE).read_bytes() == (tuned / SINGLE).read_bytes()
        assert (out / "config.json").exists()
    return [row.name for row in rows]


# --- entries -------------------------------------------------------------------------------------


def test_a_run_is_written_and_continued(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path
) -> None:
    url = url_of(s3)
    first = encode(trained, url, 10)
    rest = encode(trained, url)
    entries = inspect_run(url).deltas
    assert [entry.folder for entry in entries] == [*first, *rest]
    assert [entry.name for entry in entries] == [step(number) for number in STEPS]
    assert [entry.step for entry in entries] == list(STEPS)
    assert [entry.parent for entry in entries] == [None, *(e.tuned_digest for e in entries[:-1])]
    assert check(view, trained, tmp_path) == [step(number) for number in STEPS]
    # Nothing is left on this machine, no object repeats a secret, and a copy is a run.
    assert not list((tmp_path / "cache" / "staging").iterdir())
    view.copy("runs/a", tmp_path / "copied")
    written = b"".join(contents(tmp_path / "copied").values())
    assert not [secret for secret in SECRETS if secret.encode() in written]
    assert inspect_run(tmp_path / "copied").deltas == entries
    assert len(verify_run(tmp_path / "copied", base=trained / "base").entries) == 3


def test_a_run_is_inspected_by_one_request(s3: LoopbackS3, trained: Path, tmp_path: Path) -> None:
    encode(trained, url_of(s3))
    s3.requests.clear()
    done = rlsparse(s3, tmp_path, "inspect", url_of(s3), "--json")
    assert done.returncode == 0, done.stderr
    assert [entry["name"] for entry in json.loads(done.stdout)["deltas"]] == [*map(step, STEPS)]
    assert [(r.method, r.key) for r in s3.requests] == [("GET", "runs/a/run.json")]


def test_a_checkpoint_that_changed_is_another_entry(
    s3: LoopbackS3, trained: Path, tmp_path: Path
) -> None:
    url = url_of(s3)
    base: Tensors = {f"layers.{n}.weight": bf16_tensor(n, 60, 64) for n in range(2)}
    for seed in range(1, 4):
        place = save(
            tmp_path / str(seed) / step(10), {name: tune(t, seed) for name, t in base.items()}
        )
        # The store's clock counts whole seconds.
        os.utime(place / SINGLE, (time.time() + 10 * seed,) * 2)
        (entry,) = [e for e in encode_run(trained / "base", [place], url).deltas if e.is_new]
        assert entry.folder.startswith(f"checkpoint-10.{seed}-")
        assert folders(url)[-1] == entry.folder
    # The same content again is no other one.
    place = tmp_path / "3" / step(10)
    os.utime(place / SINGLE, (time.time() + 1000,) * 2)
    assert not any(e.is_new for e in encode_run(trained / "base", [place], url).deltas)
    assert len(folders(url)) == 3


@pytest.mark.parametrize("name", ["a b#c%?", "größe-3", "x" * 220])
def test_any_name_of_a_checkpoint(s3: LoopbackS3, trained: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    (place / SINGLE).write_bytes((trained / "trainer" / step(10) / SINGLE).read_bytes())
    encode_run(trained / "base", [place], url_of(s3))
    assert names(url_of(s3)) == [name]


def test_a_run_of_a_folder_is_continued(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path
) -> None:
    """What another tool copied into a bucket is a run."""
    encode_run(trained / "base", [trained / "trainer" / step(10)], tmp_path / "run")
    for name, data in contents(tmp_path / "run").items():
        view.put(f"runs/a/{name}", data)
    encode(trained, url_of(s3))
    assert names(url_of(s3)) == [step(number) for number in STEPS]
    assert folders(url_of(s3))[0] == step(10)


def test_another_base_is_refused(s3: LoopbackS3, trained: Path) -> None:
    url = url_of(s3)
    encode(trained, url, 10)
    with pytest.raises(BaseMismatchError, match="another base"):
        encode_run(trained / "other", [trained / "trainer" / step(20)], url, force=True)
    assert names(url) == [step(10)]


def overtake(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let another writer act once, between an upload and its listing."""

    def overtaken(*args: Any) -> None:  # noqa: ANN401 - passed on
        monkeypatch.setattr(run_bucket, "upload_delta", upload_delta)
        upload_delta(*args)
        act()

    monkeypatch.setattr(run_bucket, "upload_delta", overtaken)


def test_another_base_that_comes_first_is_refused(
    s3: LoopbackS3, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)

    checkpoint = trained / "trainer" / step(20)
    overtake(monkeypatch, lambda: encode_run(trained / "other", [checkpoint], url, force=True))
    with pytest.raises(BaseMismatchError, match="another base"):
        encode(trained, url, 10)
    assert names(url) == [step(20)]


# --- several writers -----------------------------------------------------------------------------


def test_a_writer_that_is_overtaken_loses_nothing(
    s3: LoopbackS3, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)

    overtake(monkeypatch, lambda: encode(trained, url, 20, 30))
    assert len(encode(trained, url, 10)) == 1
    assert names(url) == [step(number) for number in STEPS]


def test_the_same_entry_twice_at_once_is_one(
    s3: LoopbackS3, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)

    def overtaken(*args: Any) -> None:  # noqa: ANN401 - passed on
        monkeypatch.setattr(run_bucket, "upload_delta", upload_delta)
        encode(trained, url)
        upload_delta(*args)

    monkeypatch.setattr(run_bucket, "upload_delta", overtaken)
    encode(trained, url, 20)
    assert names(url) == [step(number) for number in STEPS]
    prune_run(url, keep_last=3, grace_seconds=0)
    prune_run(url, grace_seconds=0)
    keys = {stat.key.split("/")[0] for stat in store_of(url).list()}
    assert keys - {".run", "run.json"} == set(folders(url))


def store_of(url: str) -> ObjectStore:
    parsed = parse_bucket_url(url)
    assert parsed is not None
    return ObjectStore(parsed)


def test_two_writers_lose_nothing(s3: LoopbackS3, view: BucketView, tmp_path: Path) -> None:
    """Two processes, 100 entries each. A reader never sees an entry that is not whole."""
    base: Tensors = {"w": bf16_tensor(0, 8, 64)}
    save(tmp_path / "base", base)
    commands: list[list[str | Path]] = []
    for writer in range(2):
        for number in range(100):
            tuned = {"w": tune(base["w"], 1000 * writer + number, 0.1)}
            save(tmp_path / f"trainer-{writer}" / f"w{writer}-{number}", tuned)
        places = sorted((tmp_path / f"trainer-{writer}").iterdir())
        commands.append(["encode", tmp_path / "base", *places, "-o", url_of(s3), "--run"])
    ended = threading.Event()

    def read() -> int:
        looks = 0
        while not ended.wait(0.1):
            text = view.get("runs/a/run.json")
            rows = parse_index(text, "run.json").rows
            keys = set(view.keys("runs/a/"))
            for row in rows:
                folder = f"runs/a/{row.folder}/rlsparse"
                assert {f"{folder}/delta.safetensors", f"{folder}/entry.json"} <= keys
            looks += 1
        return looks

    with ThreadPoolExecutor(3) as pool:
        reader = pool.submit(read)
        done = [pool.submit(rlsparse, s3, tmp_path, *command) for command in commands]
        codes = [each.result().returncode for each in done]
        ended.set()
        assert reader.result() > 3
    assert codes == [0, 0]
    assert any(r.status == 412 and r.key == "runs/a/run.json" for r in s3.requests)
    s3.requests.clear()
    done_inspecting = rlsparse(s3, tmp_path, "inspect", url_of(s3), "--json")
    found = [entry["name"] for entry in json.loads(done_inspecting.stdout)["deltas"]]
    assert sorted(found) == sorted(f"w{w}-{n}" for w in range(2) for n in range(100))
    assert [(r.method, r.key) for r in s3.requests] == [("GET", "runs/a/run.json")]


def test_eight_threads_lose_nothing(s3: LoopbackS3, tmp_path: Path) -> None:
    base: Tensors = {"w": bf16_tensor(0, 8, 64)}
    save(tmp_path / "base", base)
    places = [save(tmp_path / f"step-{n}", {"w": tune(base["w"], n, 0.1)}) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: encode_run(tmp_path / "base", [p], url_of(s3)), places))
    assert names(url_of(s3)) == [f"step-{n}" for n in range(16)]


def test_a_forked_process_writes(s3: LoopbackS3, trained: Path) -> None:
    """The threads of the client do not survive the fork."""
    encode(trained, url_of(s3), 10)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=encode, args=(trained, url_of(s3), 20))
    child.start()
    child.join(100)
    assert child.exitcode == 0
    encode(trained, url_of(s3))
    assert names(url_of(s3)) == [step(number) for number in STEPS]


def test_an_interruption_ends_an_upload(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path
) -> None:
    encode(trained, url_of(s3), 10)
    s3.fail("silence", r"PUT /.*config\.json")
    command: list[str | Path] = [
        "-m",
        "rlsparse_store",
        "encode",
        trained / "base",
        trained / "trainer" / step(20),
    ]
    env = {"PATH": os.defpath, **s3.environment(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-P", *command, "-o", url_of(s3), "-q"], env=env, stderr=subprocess.PIPE
    ) as process:
        while s3.faults[0].times:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert not list((tmp_path / "cache" / "staging").iterdir())
    encode(trained, url_of(s3))
    assert check(view, trained, tmp_path) == [step(number) for number in STEPS]


def test_killed_writers_tear_and_lose_nothing(s3: LoopbackS3, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "bucket_kills.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, "60", "1", s3.bucket],
        env={"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1", **s3.environment(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    hit = json.loads(done.stdout)
    assert sum(hit.values()) == 60
    assert sum(number for what, number in hit.items() if what != "finished first") > 20


# --- retention -----------------------------------------------------------------------------------


def test_rules_and_pins(s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path) -> None:
    url = url_of(s3)
    first, second, third = encode(trained, url)
    planned = prune_run(url, keep_last=1, dry_run=True)
    assert (planned.kept, planned.unlisted) == ([third], [first, second])
    assert folders(url) == [first, second, third]
    report = prune_run(url, keep_last=1, pin=[step(10)])
    assert (report.kept, report.unlisted, report.removed) == ([first, third], [second], [])
    assert [entry.is_pinned for entry in inspect_run(url).deltas] == [True, False]
    # Its files stay until the grace period is over.
    assert view.keys(f"runs/a/{second}/")
    assert prune_run(url).removed == []
    assert prune_run(url, grace_seconds=0).removed == [second]
    assert not view.keys(f"runs/a/{second}/")
    assert check(view, trained, tmp_path) == [step(10), step(30)]
    report = prune_run(url, keep_last=1, unpin=[step(10)])
    assert report.unlisted == [first]
    # What was pruned may be stored again, beside what is still to be removed.
    (again,) = encode(trained, url, 10)
    assert again != first
    prune_run(url, grace_seconds=0)
    assert check(view, trained, tmp_path) == [step(10), step(30)]
    with pytest.raises(NotFoundError):
        prune_run(f"{url}/none", keep_last=1)


def test_what_makes_a_delta_is_removed_first(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)
    first, *_ = encode(trained, url)
    prune_run(url, keep_last=2)
    left: list[list[str]] = []
    real = ObjectStore.delete

    def noted(store: ObjectStore, keys: list[str]) -> None:
        real(store, keys)
        left.append(view.keys(f"runs/a/{first}/"))

    monkeypatch.setattr(ObjectStore, "delete", noted)
    prune_run(url, grace_seconds=0)
    after_first, after_all = [keys for keys in left if len(keys) < 3][:2]
    assert f"runs/a/{first}/rlsparse/delta.safetensors" not in after_first
    assert (len(after_first), after_all) == (2, [])


def test_a_killed_prune_is_finished(s3: LoopbackS3, view: BucketView, trained: Path) -> None:
    """It had marked an entry, and the index still names it."""
    url = url_of(s3)
    first, second, third = encode(trained, url)
    view.put(f"runs/a/.run/unlisted/{first}", b"")
    assert folders(url) == [first, second, third]
    # Its checkpoint is stored again.
    (again,) = encode(trained, url)
    assert again.startswith("checkpoint-10.2-")
    prune_run(url, grace_seconds=0)
    assert folders(url) == [again, second, third]
    assert not view.keys(f"runs/a/{first}/")


def test_an_entry_that_is_pinned_meanwhile_stays(
    s3: LoopbackS3, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)
    first, *_ = encode(trained, url)
    real = run_bucket._BucketWriter._mark

    def overtaken(*args: Any) -> None:  # noqa: ANN401 - passed on
        monkeypatch.setattr(run_bucket._BucketWriter, "_mark", real)
        prune_run(url, pin=[step(10)])
        real(*args)

    monkeypatch.setattr(run_bucket._BucketWriter, "_mark", overtaken)
    assert prune_run(url, keep_last=2).unlisted == []
    assert folders(url)[0] == first
    prune_run(url, grace_seconds=0)
    assert folders(url)[0] == first


def test_what_is_pruned_while_it_is_written_is_not_listed(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)

    def marked(store: ObjectStore, delta: Path, prefix: str) -> None:
        upload_delta(store, delta, prefix)
        view.put(f"runs/a/.run/unlisted/{prefix.rstrip('/')}", b"")

    monkeypatch.setattr(run_bucket, "upload_delta", marked)
    with pytest.raises(OutputError, match="pruned while"):
        encode(trained, url, 10)
    monkeypatch.undo()


def test_uploads_of_killed_writers_are_removed(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, left = url_of(s3), "checkpoint-9.1-0123456789abcdef"
    encode(trained, url)
    view.put(f"runs/a/{left}/config.json", b"{}")
    prune_run(url, keep_last=3, grace_seconds=0)
    prune_run(url, grace_seconds=0)
    assert view.keys(f"runs/a/{left}"), "it may be in progress"
    monkeypatch.setattr(run_bucket, "_DAY", -1.0)
    prune_run(url)
    assert view.keys(f"runs/a/.run/abandoned/{left}")
    prune_run(url)
    assert view.keys(f"runs/a/{left}"), "it was marked a moment ago"
    monkeypatch.setattr(run_bucket, "_HOUR", -1.0)
    prune_run(url)
    assert not view.keys(f"runs/a/{left}")
    prune_run(url)
    assert view.keys("runs/a/.run/") == ["runs/a/.run/clock", "runs/a/.run/conditions"]
    assert len(folders(url)) == 3


def test_an_upload_that_a_writer_finishes_is_not_removed(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was marked while it was listed."""
    url = url_of(s3)
    first, *_ = encode(trained, url)
    view.put(f"runs/a/.run/abandoned/{first}", b"")
    monkeypatch.setattr(run_bucket, "_HOUR", -1.0)
    prune_run(url)
    assert view.keys(f"runs/a/{first}")
    assert not view.keys("runs/a/.run/abandoned/")
    # And the one whose mark came first gets another folder.
    view.put(f"runs/a/.run/abandoned/{first}", b"")
    prune_run(url, keep_last=2, grace_seconds=0)
    assert encode(trained, url)[0] != first


def test_a_folder_that_is_removed_is_not_filled_again(
    s3: LoopbackS3, view: BucketView, trained: Path
) -> None:
    """Another pruning may be removing it, too."""
    url = url_of(s3)
    first, *_ = encode(trained, url)
    prune_run(url, keep_last=2)
    assert prune_run(url, grace_seconds=0).removed == [first]
    assert prune_run(url, grace_seconds=0).removed == []
    (again,) = encode(trained, url)
    assert again.startswith("checkpoint-10.2-")
    assert not view.keys(f"runs/a/{first}/")


def test_a_damaged_index_is_refused(s3: LoopbackS3, view: BucketView, trained: Path) -> None:
    url = url_of(s3)
    encode(trained, url, 10)
    text = view.get("runs/a/run.json") or b""
    for wrong in (b"", b"{}", text[:-20], text.replace(b'"pins": []', b'"pins": ["x"]')):
        view.put("runs/a/run.json", wrong)
        with pytest.raises(RunError, match="repair"):
            inspect_run(url)
        with pytest.raises(RunError, match="repair"):
            encode(trained, url, 20)


def test_an_index_is_made_again(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path
) -> None:
    url = url_of(s3)
    first, second, third = encode(trained, url)
    prune_run(url, keep_last=2, pin=[step(30)])
    entries = inspect_run(url).deltas
    text = view.get("runs/a/run.json") or b""
    assert repair_run(url).changed == []
    assert view.get("runs/a/run.json") == text
    done = rlsparse(s3, tmp_path, "runs", "repair", url, "--json")
    assert json.loads(done.stdout)["entries"] == [second, third]
    store_of(url).delete(["run.json"])
    with pytest.raises(NotFoundError):
        inspect_run(url)
    assert repair_run(url).added == [second, third]
    view.put("runs/a/run.json", b"{")
    report = repair_run(url)
    assert (report.index_error is not None, report.entries) == (True, [second, third])
    assert inspect_run(url).deltas == entries
    view.put("runs/a/run.json", text.replace(b'"step": 20', b'"step": 21'))
    with pytest.raises(RunError, match="disagrees"):
        verify_run(url)
    assert repair_run(url).changed == [second]
    assert view.get("runs/a/run.json") == text
    with pytest.raises(NotFoundError):
        repair_run(f"{url}/none")
    assert first not in folders(url)


def test_repairing_while_another_writes(
    s3: LoopbackS3, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)
    encode(trained, url, 10)
    real = whole_folders

    def overtaken(store: ObjectStore) -> set[str]:
        monkeypatch.setattr(run_bucket, "whole_folders", real)
        found = real(store)
        encode(trained, url, 20)
        return found

    monkeypatch.setattr(run_bucket, "whole_folders", overtaken)
    repair_run(url)
    assert names(url) == [step(10), step(20)]


def test_a_run_is_verified_and_its_entries_are_used(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path
) -> None:
    url = url_of(s3)
    first, *_ = encode(trained, url)
    done = rlsparse(s3, tmp_path, "verify", url, "--base", trained / "base")
    assert (done.returncode, done.stdout) == (0, "ok: 3 entries\n"), done.stderr
    command: list[str | Path] = ["apply", url, "--only", step(10), "--base", trained / "base"]
    done = rlsparse(s3, tmp_path, *command, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rebuilt, tuned = tmp_path / "out" / first, trained / "trainer" / step(10)
    assert (rebuilt / SINGLE).read_bytes() == (tuned / SINGLE).read_bytes()
    done = rlsparse(s3, tmp_path, "diff", url, step(10), step(20), "--base", trained / "base")
    assert done.returncode == 0, done.stderr
    # A base and a tuned checkpoint may be in a bucket, too.
    for name, data in contents(trained / "base").items():
        view.put(f"base/{name}", data)
    for name, data in contents(tuned).items():
        view.put(f"tuned/{name}", data)
    report = encode_run(f"{s3.url}/base", [f"{s3.url}/tuned"], f"{s3.url}/runs/b")
    assert [entry.name for entry in report.deltas] == ["tuned"]
    assert verify_run(f"{s3.url}/runs/b", base=f"{s3.url}/base").entries
    damaged = bytearray(view.get(f"runs/a/{first}/rlsparse/delta.safetensors") or b"")
    damaged[-1] ^= 1
    view.put(f"runs/a/{first}/rlsparse/delta.safetensors", bytes(damaged))
    done = rlsparse(s3, tmp_path, "verify", url)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert first in done.stderr


# --- faults --------------------------------------------------------------------------------------

WRITES = (r"PUT /.*config\.json", r"PUT /.*delta\.safetensors", r"PUT /.*run\.json", r"GET /.*run")


@pytest.mark.parametrize("on", WRITES)
@pytest.mark.parametrize("fault", ["500", "503", "cut", "dropped", "lost"])
def test_a_failure_that_passes_is_not_noticed(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path, fault: str, on: str
) -> None:
    encode(trained, url_of(s3), 10)
    s3.fail(fault, on)
    encode(trained, url_of(s3))
    assert check(view, trained, tmp_path) == [step(number) for number in STEPS]


@pytest.mark.parametrize("on", WRITES)
@pytest.mark.parametrize("fault", ["403", "404", "500", "silence"])
def test_a_failure_that_stays_is_one_clear_error(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path, fault: str, on: str
) -> None:
    encode(trained, url_of(s3), 10)
    s3.fail(fault, on, times=1000)
    places = sorted((trained / "trainer").iterdir())
    command: list[str | Path] = [
        "encode",
        trained / "base",
        *places,
        "-o",
        url_of(s3),
        "--run",
        "-q",
    ]
    done = rlsparse(s3, tmp_path, *command, RLSPARSE_BUCKET_TIMEOUT="1.5")
    if not (fault == "404" and on.startswith("GET")):  # which says that there is no run
        assert done.returncode in {1, 4}, done.stderr
    else:
        assert done.returncode != 0
    assert done.stderr.count("\n") == 1, done.stderr
    assert s3.bucket in done.stderr
    s3.faults.clear()
    assert check(view, trained, tmp_path) == [step(10)]
    encode(trained, url_of(s3))
    assert check(view, trained, tmp_path) == [step(number) for number in STEPS]


@pytest.mark.parametrize("times", [1, 5])
def test_other_writers_that_come_first(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path, times: int
) -> None:
    s3.fail("412", r"PUT /.*run\.json", times=times)
    encode(trained, url_of(s3))
    assert check(view, trained, tmp_path) == [step(number) for number in STEPS]


def test_a_store_that_refuses_every_condition(s3: LoopbackS3, trained: Path) -> None:
    s3.fail("412", r"PUT /.*run\.json", times=100)
    with pytest.raises(OutputError, match="could not be replaced 8 times"):
        encode(trained, url_of(s3))


def test_other_writers_that_always_come_first(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_objects, "_MOST_SWAPS", 3)
    encode(trained, url_of(s3), 10)
    text, reads = view.get("runs/a/run.json") or b"", []
    real = Index.read

    def overtaken(store: ObjectStore) -> Any:  # noqa: ANN401 - passed on
        found = real(store)
        reads.append(found)
        view.put("runs/a/run.json", text + b" " * len(reads))
        return found

    monkeypatch.setattr(Index, "read", overtaken)
    with pytest.raises(OutputError, match="could not be replaced 3 times"):
        encode(trained, url_of(s3), 20)


@pytest.mark.parametrize("ignored", [Absent, ObjectVersion])
def test_a_store_without_conditions_is_refused(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch, ignored: type
) -> None:
    """Older servers of S3 ignore them."""
    real = ObjectStore.put

    def put(store: ObjectStore, key: str, data: bytes | Path, *, only_if: Condition = None) -> Any:  # noqa: ANN401 - passed on
        return real(store, key, data, only_if=None if isinstance(only_if, ignored) else only_if)

    monkeypatch.setattr(ObjectStore, "put", put)
    with pytest.raises(OutputError, match="ignores the conditions"):
        encode(trained, url_of(s3), 10)
    assert not view.keys("runs/a/run.json")


def test_objects_of_other_content_are_never_replaced(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(s3)
    monkeypatch.setattr(run_bucket, "delta_digest", lambda _: "0" * 16)
    key = f"runs/a/checkpoint-10.1-{'0' * 16}/config.json"
    view.put(key, b"[]")
    with pytest.raises(OutputError, match="other content"):
        encode(trained, url, 10)
    assert view.get(key) == b"[]"
    assert not view.keys("runs/a/run.json")


# --- one delta -----------------------------------------------------------------------------------


def test_one_delta(s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path) -> None:
    tuned = trained / "trainer" / step(10)
    command: list[str | Path] = ["encode", trained / "base", tuned, "-o", f"s3://{s3.bucket}/d"]
    done = rlsparse(s3, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    encode_delta(trained / "base", tuned, tmp_path / "local")
    view.copy("d", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(tmp_path / "local")
    puts = [r.key for r in s3.requests if r.method == "PUT"]
    assert puts[-1] == "d/rlsparse/delta.safetensors"
    done = rlsparse(s3, tmp_path, *command)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)


def test_one_delta_after_an_interruption(s3: LoopbackS3, view: BucketView, trained: Path) -> None:
    tuned, url = trained / "trainer" / step(10), f"s3://{s3.bucket}/d"
    s3.fail("403", r"PUT /d/rlsparse", times=1)
    with pytest.raises(BucketPermissionError):
        encode_delta(trained / "base", tuned, url)
    assert view.keys("d/") == ["d/config.json"]
    encode_delta(trained / "base", tuned, url)
    view.put("e/config.json", b"[]")
    with pytest.raises(OutputError, match="other content"):
        encode_delta(trained / "base", tuned, f"s3://{s3.bucket}/e")
    view.put("f/notes.txt", b"")
    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        encode_delta(trained / "base", tuned, f"s3://{s3.bucket}/f")
    assert view.keys("f/") == ["f/notes.txt"]


def test_a_delta_of_several_shards_has_its_list_last(
    s3: LoopbackS3, view: BucketView, trained: Path, tmp_path: Path
) -> None:
    tuned = trained / "trainer" / step(10)
    encode_delta(trained / "base", tuned, f"s3://{s3.bucket}/d", shard_bytes=300)
    puts = [r.key for r in s3.requests if r.method == "PUT"]
    assert puts[-1] == "d/rlsparse/delta.safetensors.index.json"
    assert len(puts) > 3
    view.copy("d", tmp_path / "copy")
    apply_delta(tmp_path / "copy", tmp_path / "out", base=trained / "base")


def test_a_large_object_is_sent_in_parts(
    s3: LoopbackS3, view: BucketView, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is replaced, although S3 joins parts under no condition."""
    from rlsparse_store.buckets import upload  # noqa: PLC0415 - patched

    monkeypatch.setattr(upload, "PART_BYTES", 1)
    monkeypatch.setattr(upload, "MOST_CONDITIONAL", 1)
    tuned = trained / "trainer" / step(10)
    encode_delta(trained / "base", tuned, f"s3://{s3.bucket}/d")
    assert len(view.keys("d/")) == 2
    view.put("e/config.json", b"[]")
    with pytest.raises(OutputError, match="other content"):
        encode_delta(trained / "base", tuned, f"s3://{s3.bucket}/e")


def test_other_results_are_not_written_to_a_url(
    s3: LoopbackS3, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor into a folder of this name."""
    monkeypatch.chdir(tmp_path)
    encode_delta(trained / "base", trained / "trainer" / step(10), tmp_path / "delta")
    with pytest.raises(OutputError, match="only deltas and runs"):
        apply_delta(tmp_path / "delta", f"{s3.url}/out", base=trained / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta"]
