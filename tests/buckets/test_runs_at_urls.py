"""Commands about a run at a URL, and what they ask the server for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from loopback_s3 import LoopbackS3, rlsparse, store_at, upload
from pairs import bf16_tensor, contents, save, tune

from rlsparse_store.analysis.overlap import compare_deltas
from rlsparse_store.analysis.series import measure_series
from rlsparse_store.delta import encode_run, inspect_run
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_files import index_text

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A base, three checkpoints, and a run of them."""
    base = {"w": bf16_tensor(0, 64, 80)}
    save(tmp_path / "base", base)
    steps = [save(tmp_path / f"step-{step}", {"w": tune(base["w"], step)}) for step in (1, 2, 3)]
    encode_run(tmp_path / "base", steps, tmp_path / "run")
    return tmp_path


def test_inspecting_a_run_of_200_entries_is_one_request(s3: LoopbackS3, trained: Path) -> None:
    row = place_of(trained / "run").read().rows[0]
    rows = [replace(row, name=f"step-{n}", folder=f"step-{n}", step=n) for n in range(1, 201)]
    store_at(f"{s3.url}/run").put("run.json", index_text(rows))
    s3.requests.clear()
    result = rlsparse(s3, trained, "inspect", f"{s3.url}/run", "--json")
    assert result.returncode == 0, result.stderr
    assert [(request.method, request.key) for request in s3.requests] == [("GET", "run/run.json")]
    listed = json.loads(result.stdout)["deltas"]
    assert [entry["step"] for entry in listed] == list(range(1, 201))


def test_a_run_is_measured_rebuilt_and_verified(s3: LoopbackS3, trained: Path) -> None:
    url, base = f"{s3.url}/run", f"{s3.url}/base"
    upload(base, trained / "base")
    result = rlsparse(
        s3, trained, "encode", "--run", base, *sorted(trained.glob("step-*")), "-o", url, "-q"
    )
    assert result.returncode == 0, result.stderr
    entries = inspect_run(url).deltas
    assert [entry.step for entry in entries] == [1, 2, 3]
    local = trained / "base"
    there = measure_series([url], base=base).as_json()["steps"]
    here = measure_series([trained / "run"], base=local).as_json()["steps"]
    # An entry's folder has a digest in its name.
    assert [{**step, "name": ""} for step in there] == [{**step, "name": ""} for step in here]
    assert (
        compare_deltas([url], base=base).as_json()["pairs"][0]["overall"]
        == compare_deltas([trained / "run"], base=local).as_json()["pairs"][0]["overall"]
    )
    for command in (
        ("verify", url, "--base", base),
        ("apply", url, "--only", "step-2", "--base", base, "-o", trained / "out"),
        ("apply", f"{url}/{entries[0].folder}", "--base", base, "-o", trained / "out1"),
        ("inspect", url, "--subfolder", entries[0].folder, "--base", base),
        ("diff", url, "step-1", "step-2"),
    ):
        result = rlsparse(s3, trained, *command)
        assert result.returncode == 0, (command, result.stderr)
    assert contents(trained / "out1") == contents(trained / "step-1")
    (rebuilt,) = (trained / "out").iterdir()
    assert contents(rebuilt) == contents(trained / "step-2")
