"""Repositories as people fill them: only what is read is fetched, and messages name ids."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from loopback_hub import NAMED, LoopbackHub, rlsparse
from pairs import INDEX, SINGLE, bf16_tensor, contents, file_bytes, save, save_sharded, tune

if TYPE_CHECKING:
    from pathlib import Path

Files = dict[str, bytes]

BASE = {"a": bf16_tensor(1, 90, 80), "b": bf16_tensor(2, 90, 80)}
TUNED = {name: tune(tensor, 3) for name, tensor in BASE.items()}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def succeed(hub: LoopbackHub, home: Path, *arguments: str | Path) -> str:
    done = rlsparse(hub, home, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(hub: LoopbackHub, home: Path, code: int, *arguments: str | Path) -> str:
    done = rlsparse(hub, home, *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert "snapshots" not in done.stderr
    return done.stderr


def fetched(hub: LoopbackHub, names: Files) -> set[str]:
    """Those files of which the content was asked for."""
    paths = [request.path for request in hub.requests if request.method == "GET"]
    return {name for name in names if any(path.endswith(f"/{name}") for path in paths)}


OTHERS: Files = {
    "model.fp32-00001-of-00002.safetensors": b"1",
    "model.fp32-00002-of-00002.safetensors": b"2",
    "model.safetensors.index.fp32.json": b"{}",
    "model.fp16.safetensors": b"3",
    "models/old/pytorch.safetensors": b"4",
    "original/model.safetensors.backup": b"5",
    "pytorch_model.bin": b"6",
}


def test_of_weights_that_are_there_several_times_those_are_fetched_that_are_read(
    tmp_path: Path, hub: LoopbackHub
) -> None:
    hub.commit("org/base", {**contents(save(tmp_path / "b", BASE)), **OTHERS, "config.json": b"{}"})
    tuned = save(tmp_path / "t", TUNED)
    succeed(hub, tmp_path / "home", "encode", "org/base", tuned, "-o", tmp_path / "delta")
    assert fetched(hub, {**OTHERS, "config.json": b"", SINGLE: b""}) == {SINGLE}
    succeed(hub, tmp_path / "new", "apply", tmp_path / "delta", "-o", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tuned)
    assert fetched(hub, OTHERS) == set()


def test_a_tuned_repository_brings_what_the_model_needs(tmp_path: Path, hub: LoopbackHub) -> None:
    base, tuned = save_sharded(tmp_path / "b", BASE), save(tmp_path / "t", TUNED)
    modules = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    sides = {
        "config.json": b'{"auto_map": {"AutoModel": "modeling_x.X"}}',
        "modeling_x.py": b"from .helper import f",
        "helper.py": b"",
        "modules.json": json.dumps(modules).encode(),
        "2_Dense/config.json": b"{}",
        f"2_Dense/{SINGLE}": file_bytes(BASE),
    }
    more = {"optimizer.pt": b"x", "docs/config.json": b"{}", f"checkpoint-1/{SINGLE}": b"x"}
    hub.commit("org/tuned", {**contents(tuned), **sides, **more})
    succeed(hub, tmp_path / "home", "encode", base, "org/tuned", "-o", tmp_path / "delta")
    assert set(contents(tmp_path / "delta")) == {*sides, "rlsparse/delta.safetensors"}
    assert fetched(hub, more) == set()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({f"checkpoint-500/{SINGLE}": b"x"}, ["checkpoint-500/", "hf download org/x"]),
        ({"pytorch_model.bin": b"x"}, ["pickled", "convert"]),
        ({"global_step1/zero_to_fp32.py": b""}, ["zero_to_fp32.py"]),
        ({FIRST: b"x"}, ["incomplete"]),
        ({FIRST: b"x", INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, ["gone.safetensors"]),
    ],
)
def test_a_repository_without_weights_is_refused_by_its_id(
    tmp_path: Path, hub: LoopbackHub, files: Files, words: list[str]
) -> None:
    hub.commit("org/x", {**files, "config.json": b"{}"})
    base = save(tmp_path / "b", BASE)
    line = fail(hub, tmp_path / "home", 1, "encode", base, "org/x", "-o", tmp_path / "delta")
    assert line.startswith("rlsparse: org/x")
    assert all(word in line for word in words), line


def test_a_squashed_history_falls_back_to_content(pair: Path, hub: LoopbackHub) -> None:
    repo, files = hub.repos["org/base"], dict(hub.files("org/base"))
    del repo.commits[repo.refs["main"]]
    hub.commit("org/base", {**files, "README.md": b"squashed"})
    succeed(hub, pair / "home", "apply", pair / "delta", "-o", pair / "out")
    assert contents(pair / "out") == contents(pair / "tuned")
    succeed(hub, pair / "h2", "apply", pair / "delta", "-b", "org/base", "-o", pair / "out2")
    # Another model under that name is not taken for it, nor downloaded.
    del repo.commits[repo.refs["main"]]
    hub.commit("org/base", contents(save(pair / "other", {"other": bf16_tensor(9, 300, 300)})))
    hub.requests.clear()
    fail(hub, pair / "h3", 4, "apply", pair / "delta", "-o", pair / "out3")
    assert not [r for r in hub.requests if r.path.startswith("/large/org/base") and not r.range]


def test_a_wrong_subfolder_names_those_that_hold_deltas(pair: Path, hub: LoopbackHub) -> None:
    for name in ("step-1", "step-2"):
        files = {f"{name}/{path}": data for path, data in contents(pair / "delta").items()}
        hub.commit("me/run", {**(hub.files("me/run") if "me/run" in hub.repos else {}), **files})
    for command in (["apply", "me/run", "--subfolder", "step-3"], ["pull", "me/run/../x"]):
        line = fail(hub, pair / "home", 4, *command, "-o", pair / "out")
        assert "step-1, step-2" in line or "not a repository id" in line
    line = fail(hub, pair / "home", 4, "pull", "me/run", "--subfolder", "s", "-o", pair / "out")
    assert "there are deltas in step-1, step-2" in line


def test_a_picture_comes_with_its_card(pair: Path, hub: LoopbackHub) -> None:
    card = {"README.md": b"![](density.png)", "density.png": b"png"}
    hub.commit(NAMED, {**hub.files(NAMED), **card})
    succeed(hub, pair / "home", "pull", NAMED, "-o", pair / "out")
    assert contents(pair / "out").items() >= card.items()


TYPED = """
import sys
from rlsparse_store import encode_delta
try:
    encode_delta(*sys.argv[1:])
except FileNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("ckpts/checkpoint-10O", "ckpts/checkpoint-100"),
        ("ckpt/checkpoint-100", "ckpts/checkpoint-100"),
        ("ckpts/chekpoint-100", "ckpts/checkpoint-100"),
    ],
)
def test_a_mistyped_path_never_reaches_the_hub(
    tmp_path: Path, hub: LoopbackHub, typed: str, near: str
) -> None:
    save(tmp_path / "ckpts" / "checkpoint-100", TUNED)
    save(tmp_path / "base", BASE)
    arguments = [sys.executable, "-P", "-c", TYPED, "base", typed, "delta"]
    done = subprocess.run(
        arguments,
        cwd=tmp_path,
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"did you mean {near}?" in done.stdout, done.stdout + done.stderr
    assert not hub.requests


def test_a_path_that_exists_is_no_mistyped_one(tmp_path: Path, hub: LoopbackHub) -> None:
    save(tmp_path / "ckpts" / "checkpoint-100", TUNED)
    save(tmp_path / "base" / "new", BASE)
    done = subprocess.run(
        [sys.executable, "-P", "-c", TYPED, "base/new", "ckpts/checkpoint-100", "run/delta"],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stdout
    assert (tmp_path / "run" / "delta" / "rlsparse").is_dir()
    assert not hub.requests
