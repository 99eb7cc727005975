"""Deltas and bases in buckets: read by ranges, fetched, rebuilt, verified, measured and loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from loopback_s3 import SECRETS, LoopbackS3, rlsparse, upload
from models import move_weights, small_llama
from pairs import bf16_tensor, contents, save, tune
from safetensors import safe_open
from transformers import LlamaForCausalLM

from rlsparse_store.analysis.overlap import compare_deltas
from rlsparse_store.buckets.object_cache import SAFE_SECONDS, keep_bounded
from rlsparse_store.delta import (
    apply_delta,
    encode_delta,
    inspect_delta,
    open_delta,
    verify_delta,
)
from rlsparse_store.errors import (
    BaseMismatchError,
    BucketPermissionError,
    BucketServerError,
    BucketTimeoutError,
    CheckpointError,
    ChecksumError,
    FormatError,
    NotFoundError,
    ObjectConflictError,
    OutputError,
    PickleRefusedError,
    RlsparseError,
)
from rlsparse_store.integrations.serving.places import ServedPlaces
from rlsparse_store.integrations.transformers import from_delta
from rlsparse_store.torch import DeltaSwitch, patch_

if TYPE_CHECKING:
    from pathlib import Path

    from loopback_hub import LoopbackHub

SLACK = 64 << 10
"""Bytes besides a tensor's chunks that reading it may take, per file."""


@pytest.fixture
def places(s3: LoopbackS3, tmp_path: Path) -> Path:
    """A base, a delta of two shards and a tuned checkpoint, here and in the bucket."""
    base = {name: bf16_tensor(i, 1500, 512) for i, name in enumerate("abcdef")}
    base["still"] = bf16_tensor(7, 2000, 512)
    base["small"] = bf16_tensor(8, 64)
    tuned = {name: tune(t, 3, density=0.2) if len(name) == 1 else t for name, t in base.items()}
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", tuned)
    (tmp_path / "tuned" / "config.json").write_text("{}")
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", shard_bytes=150_000)
    for name in ("base", "tuned", "delta"):
        upload(f"{s3.url}/{name}", tmp_path / name)
    s3.requests.clear()
    return tmp_path


def bits(path: Path, name: str) -> bytes:
    """The bytes of a tensor, by a reader that is not ours."""
    with safe_open(path / "model.safetensors", "pt") as file:
        return bytes(file.get_tensor(name).view(torch.uint16).numpy().tobytes())


def test_inspecting_reads_front_and_index(s3: LoopbackS3, places: Path) -> None:
    report = inspect_delta(f"{s3.url}/delta")
    assert report == inspect_delta(places / "delta")
    shards = len(list((places / "delta" / "rlsparse").glob("*.safetensors")))
    assert shards > 2
    # One listing, the list of shards, the front of each, and the index.
    assert len(s3.requests) <= shards + 3
    assert s3.sent < report.delta_bytes / 10 + shards * SLACK


@pytest.mark.parametrize("where", ["path", "url", "file"])
def test_a_tensor_costs_its_chunks(s3: LoopbackS3, places: Path, where: str) -> None:
    base: str | Path = places / "base"
    if where != "path":
        base = f"{s3.url}/base" + ("/model.safetensors" if where == "file" else "")
    stored = {t.name: t.stored_bytes for t in inspect_delta(places / "delta").tensors}
    with open_delta(f"{s3.url}/delta", base=base, framework="bits") as tuned:
        for name in ("a", "still", "small", "f"):
            s3.requests.clear()
            assert tuned.get_tensor(name).tobytes() == bits(places / "tuned", name)
            for file in {request.key for request in s3.requests}:
                nbytes = sum(r.nbytes for r in s3.requests if r.key == file)
                own = stored[name] if file.startswith("delta/") else tuned[name].nbytes
                assert nbytes <= own + SLACK
            sent = [request for request in s3.requests if request.nbytes]
            assert len(sent) <= 3  # neighbours are joined
            # And again from the disk.
            s3.requests.clear()
            assert tuned.get_tensor(name).tobytes() == bits(places / "tuned", name)
            assert s3.requests == []
        assert set(tuned) == set(stored)
        rows = tuned.get_slice("b")[700:710]
        s3.requests.clear()
        whole = tuned.get_tensor("b")
        assert rows.tobytes() == whole[700:710].tobytes()


def test_a_slice_reads_the_chunks_that_it_touches(s3: LoopbackS3, tmp_path: Path) -> None:
    base = {"w": bf16_tensor(0, 9000, 1024)}
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", {"w": tune(base["w"], 3, density=0.3)})
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    upload(f"{s3.url}/delta", tmp_path / "delta")
    upload(f"{s3.url}/base", tmp_path / "base")
    with open_delta(f"{s3.url}/delta", base=f"{s3.url}/base", framework="bits") as tuned:
        s3.requests.clear()
        some = tuned.get_slice("w")[10:20]
        assert s3.sent < 9000 * 1024 * 2 / 3
        assert some.tobytes() == bits(tmp_path / "tuned", "w")[10 * 2048 : 20 * 2048]


def test_everything_is_checked(s3: LoopbackS3, places: Path) -> None:
    with pytest.raises(BaseMismatchError, match=f"{s3.url}/tuned"):
        open_delta(
            f"{s3.url}/delta", base=f"{s3.url}/tuned", framework="bits", verify="full"
        ).close()
    file = next(iter(sorted((places / "delta" / "rlsparse").glob("*-00001-*"))))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    upload(f"{s3.url}/damaged", places / "delta")
    damaged = f"{s3.url}/damaged"
    tuned = open_delta(damaged, base=places / "base", framework="bits")
    with tuned, pytest.raises(ChecksumError, match=f"{damaged}/rlsparse/delta-00001"):
        list(tuned.values())
    with pytest.raises(ChecksumError, match=damaged):
        verify_delta(damaged)
    with pytest.raises(FormatError, match="more than 1000"):
        open_delta(damaged, base=places / "base", framework="bits", max_tuned_bytes=1000)


def test_checkpoints_come_back_byte_for_byte(s3: LoopbackS3, places: Path) -> None:
    apply_delta(f"{s3.url}/delta", places / "out", base=f"{s3.url}/base")
    assert contents(places / "out") == contents(places / "tuned")
    s3.requests.clear()
    verify_delta(f"{s3.url}/delta", base=f"{s3.url}/base", tuned=f"{s3.url}/tuned")
    # Delta and base were in the cache, and are listed to see that they are the same.
    fetched = {request.key for request in s3.requests if request.key}
    assert fetched == {"tuned/model.safetensors", "tuned/config.json"}
    s3.requests.clear()
    apply_delta(f"{s3.url}/delta", places / "again", base=f"{s3.url}/base")
    assert all("list-type" in request.query for request in s3.requests)


def test_bases_and_checkpoints_to_encode_may_be_in_a_bucket(s3: LoopbackS3, places: Path) -> None:
    encode_delta(f"{s3.url}/base", f"{s3.url}/tuned", places / "delta2", shard_bytes=150_000)
    assert contents(places / "delta2") == contents(places / "delta")
    with pytest.raises(CheckpointError, match="is a delta, not a checkpoint"):
        encode_delta(f"{s3.url}/base", f"{s3.url}/delta", places / "delta3")
    with pytest.raises(NotFoundError, match="no objects below this URL"):
        encode_delta(f"{s3.url}/bas", f"{s3.url}/tuned", places / "delta3")
    with pytest.raises(CheckpointError, match="these folders do: base/, delta/"):
        encode_delta(s3.url, f"{s3.url}/tuned", places / "delta3")
    with pytest.raises(PickleRefusedError):
        encode_delta(f"{s3.url}/base/pytorch_model.bin", f"{s3.url}/tuned", places / "delta3")
    assert not (places / "delta3").exists()


def test_deltas_are_compared(s3: LoopbackS3, places: Path) -> None:
    (places / "base" / "config.json").write_text("{}")
    base = places / "base"
    upload(f"{s3.url}/other", places / "delta")
    pair = [f"{s3.url}/delta", f"{s3.url}/other"]
    compared = compare_deltas(pair, base=base).as_json()
    locally = compare_deltas([places / "delta", places / "delta"], base=base).as_json()
    assert compared["pairs"][0]["overall"] == locally["pairs"][0]["overall"]


@pytest.mark.usefixtures("places")
def test_what_is_no_delta(s3: LoopbackS3) -> None:
    for call in (inspect_delta, verify_delta):
        with pytest.raises(NotFoundError, match=f"{s3.url}/base: is not a delta"):
            call(f"{s3.url}/base")
        with pytest.raises(NotFoundError, match=r"there are deltas in delta \(--subfolder\)"):
            call(s3.url)
        with pytest.raises(NotFoundError, match=f"{s3.url}/bas: there are no objects below"):
            call(f"{s3.url}/bas")
        with pytest.raises(NotFoundError, match="has no revision"):
            call(f"{s3.url}/delta", revision="main")
        with pytest.raises(NotFoundError, match="not read with local_files_only"):
            call(f"{s3.url}/delta", local_files_only=True)
        with pytest.raises(NotFoundError, match="no such bucket"):
            call("s3://no-such-bucket/delta")
        call(s3.url, subfolder="delta")
        with pytest.raises(NotFoundError):
            call(f"{s3.url}/delta", subfolder="../other")


def test_an_object_that_is_replaced_is_noticed(s3: LoopbackS3, places: Path) -> None:
    with open_delta(f"{s3.url}/delta", base=f"{s3.url}/base", framework="bits") as tuned:
        shutil.rmtree(places / "base")
        save(places / "base", {"a": bf16_tensor(99, 1500, 512)})
        upload(f"{s3.url}/base", places / "base")
        with pytest.raises(ObjectConflictError, match=f"{s3.url}/base/model.safetensors: was repl"):
            tuned.get_tensor("a")


FAULTS = [
    ("403", BucketPermissionError, 1),
    ("404", NotFoundError, 4),
    ("412", ObjectConflictError, 1),
    ("500", BucketServerError, 1),
    ("dropped", BucketServerError, 1),
    ("cut", BucketServerError, 1),
    ("silence", BucketTimeoutError, 1),
]


@pytest.mark.parametrize(("fault", "kind", "code"), FAULTS)
def test_faults_of_the_command(
    s3: LoopbackS3, places: Path, fault: str, kind: type[Exception], code: int
) -> None:
    """One line, the exit code of the error, nothing half-written; and no secret (`rlsparse`)."""
    del kind
    arguments = ("apply", f"{s3.url}/delta", "-o", places / "out", "-q")
    s3.fail(fault, r"GET /base/model", times=99)
    seconds = "2" if fault == "silence" else "60"
    result = rlsparse(
        s3,
        places,
        *arguments,
        *("--base", f"{s3.url}/base"),
        RLSPARSE_BUCKET_TIMEOUT=seconds,
    )
    assert result.returncode == code
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"rlsparse: {s3.url}/base/model.safetensors: ")
    assert not list(places.glob("*out*"))
    assert not [p for p in (places / "cache").rglob("*") if p.name.startswith(".")]
    s3.faults.clear()
    if fault in {"500", "dropped", "cut"}:
        s3.fail(fault, r"GET /base/model")
    assert rlsparse(s3, places, *arguments, "--base", f"{s3.url}/base").returncode == 0
    assert contents(places / "out") == contents(places / "tuned")


@pytest.mark.parametrize(("fault", "kind", "code"), FAULTS)
def test_faults_while_a_tensor_is_read(
    s3: LoopbackS3,
    places: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    kind: type[Exception],
    code: int,
) -> None:
    del code
    monkeypatch.setattr("rlsparse_store.buckets.calls.FIRST_PAUSE", 0.001)
    with open_delta(f"{s3.url}/delta", base=f"{s3.url}/base", framework="bits") as tuned:
        s3.fail(fault, "GET /base/model", times=99)
        if fault == "silence":
            monkeypatch.setenv("RLSPARSE_BUCKET_TIMEOUT", "1")
        with pytest.raises(kind, match=f"{s3.url}/base/model.safetensors"):
            tuned.get_tensor("a")
        s3.faults.clear()
        monkeypatch.delenv("RLSPARSE_BUCKET_TIMEOUT", raising=False)
        assert tuned.get_tensor("a").tobytes() == bits(places / "tuned", "a")


def test_eight_threads(s3: LoopbackS3, places: Path) -> None:
    names = [*"abcdef", "still", "small"] * 4
    with (
        open_delta(f"{s3.url}/delta", base=f"{s3.url}/base", framework="bits") as tuned,
        ThreadPoolExecutor(8) as pool,
    ):
        read = list(pool.map(lambda name: tuned.get_tensor(name).tobytes(), names))
    assert read == [bits(places / "tuned", name) for name in names]


WORKERS = """
import os, signal, sys
import torch
from torch.utils.data import DataLoader, Dataset
from rlsparse_store.delta import open_delta

names = [*"abcdef", "still", "small"] * 2
tuned = open_delta(sys.argv[1], base=sys.argv[2])
expected = {name: tuned.get_tensor(name).clone() for name in ("a", "b")}


class Tensors(Dataset):
    def __len__(self):
        return len(names)

    def __getitem__(self, number):
        signal.alarm(60)
        return number, tuned.get_tensor(names[number])


for number, tensor in DataLoader(Tensors(), batch_size=None, num_workers=3):
    signal.alarm(60)
    name = names[number]
    expected.setdefault(name, tensor)
    assert torch.equal(expected[name], tensor)
child = os.fork()
if not child:
    signal.alarm(60)
    assert torch.equal(tuned.get_tensor("c"), expected["c"])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_forked_workers_read_what_the_parent_opened(s3: LoopbackS3, places: Path) -> None:
    """Workers of a DataLoader: no hang, though the parent has used its connection."""
    # OpenMP's threads do not survive a fork, either: torch has one.
    env = {"PATH": os.defpath, **s3.environment(places), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", WORKERS, f"{s3.url}/delta", f"{s3.url}/base"],
        env=env,
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_model_is_loaded_and_patched(s3: LoopbackS3, tmp_path: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "base")
    base = model.state_dict()
    move_weights(model, seed=1, density=0.1)
    model.save_pretrained(tmp_path / "tuned")
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    for name in ("base", "delta"):
        upload(f"{s3.url}/{name}", tmp_path / name)
    loaded = from_delta(f"{s3.url}/base", f"{s3.url}/delta")
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    other = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    with DeltaSwitch(other) as switch:
        switch.to(f"{s3.url}/delta")
        assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    assert base.keys() == other.state_dict().keys()
    patch_(other, f"{s3.url}/delta")
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


# --- Where a delta leads ------------------------------------------------------------------------


def test_a_delta_in_a_bucket_leads_to_no_other_place(
    s3: LoopbackS3, pair: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delta names a base on the Hub, where it is; the Hub is not asked."""
    upload(f"{s3.url}/delta", pair / "delta")
    for name, value in hub.environment(pair / "hf-home").items():
        monkeypatch.setenv(name, value)
    hub.requests.clear()
    commands = [
        ("apply", f"{s3.url}/delta", "-o", pair / "out", "-q"),
        ("inspect", f"{s3.url}/delta", "--values", "-q"),
    ]
    env = hub.environment(pair / "hf-home")
    for command in commands:
        result = rlsparse(s3, pair, *command, **env)
        assert result.returncode == 4, result.stderr
        assert "names org/base at commit" in result.stderr
        assert "--base org/base@" in result.stderr
    with pytest.raises(NotFoundError, match="leads to no other place"):
        open_delta(f"{s3.url}/delta")
    assert hub.requests == []
    # Given by name, it is read.
    result = rlsparse(s3, pair, *commands[0], "--base", "org/base", **env)
    assert result.returncode == 0, result.stderr
    assert hub.requests
    # From then on it is in the Hub's cache, and found there by its content.
    shutil.rmtree(pair / "out")
    hub.requests.clear()
    assert rlsparse(s3, pair, *commands[0], **env).returncode == 0
    assert hub.requests == []


def test_no_folder_is_a_root_of_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Below a folder, a URL would be any bucket."""
    monkeypatch.chdir(tmp_path)
    for roots in ([], ["."], ["/"], [str(tmp_path)], ["s3://other"], ["org/name"]):
        places = ServedPlaces.take("--option", {"roots": roots})
        with pytest.raises(RlsparseError):
            places.check("s3://bucket/delta")


# --- The cache ----------------------------------------------------------------------------------


def test_the_cache_is_private_and_its_loss_is_no_error(s3: LoopbackS3, places: Path) -> None:
    cache = places / "cache" / "objects"
    with open_delta(f"{s3.url}/delta", base=f"{s3.url}/base", framework="bits") as tuned:
        expected = tuned.get_tensor("a")
        assert cache.stat().st_mode & 0o777 == 0o700
        for path in sorted(cache.rglob("*"), reverse=True):
            if path.is_file():
                path.unlink()
        assert np.array_equal(tuned.get_tensor("a"), expected)
        for path in cache.rglob("*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
        assert np.array_equal(tuned.get_tensor("a"), expected)
        shutil.rmtree(cache)
        assert np.array_equal(tuned.get_tensor("a"), expected)
        shutil.rmtree(cache)
        cache.mkdir()
        cache.chmod(0o777)
    with pytest.raises(OutputError, match="another user may write to it; set RLSPARSE_CACHE"):
        open_delta(f"{s3.url}/delta", base=f"{s3.url}/base", framework="bits")


def test_the_entries_that_were_used_longest_ago_are_deleted(
    s3: LoopbackS3, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_delta(f"{s3.url}/delta", places / "out", base=f"{s3.url}/base")
    entries = sorted((places / "cache" / "objects").iterdir())
    sizes = {e: sum(p.stat().st_size for p in e.rglob("*") if p.is_file()) for e in entries}
    old, recent = sorted(entries, key=lambda entry: sizes[entry])
    now = old.stat().st_mtime
    os.utime(old, (now, now - 3 * SAFE_SECONDS))
    os.utime(recent, (now, now - 2 * SAFE_SECONDS))
    keep_bounded()
    assert old.exists()
    monkeypatch.setenv("RLSPARSE_CACHE_BYTES", str(sizes[recent]))
    keep_bounded()
    assert not old.exists()
    monkeypatch.setenv("RLSPARSE_CACHE_BYTES", "0")
    verify_delta(f"{s3.url}/delta", base=f"{s3.url}/base")  # this is a use
    keep_bounded()
    assert recent.exists()


def test_no_secret_is_kept(s3: LoopbackS3, places: Path) -> None:
    """Not in the cache, and not in a delta of a base in a bucket."""
    result = rlsparse(
        s3, places, "encode", f"{s3.url}/base", f"{s3.url}/tuned", "-o", places / "new", "--json"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)
    for path in [*(places / "cache").rglob("*"), *(places / "new").rglob("*")]:
        found = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        assert not any(secret.encode() in found for secret in SECRETS)
