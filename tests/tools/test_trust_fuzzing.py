"""The rig of fuzzing: what it keeps, and what it counts where a tool is missing."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import fuzzing
from forked import Place
from result import Result

if TYPE_CHECKING:
    from pathlib import Path


def test_a_corpus_comes_back_and_has_one_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "HERE", tmp_path)
    (tmp_path / "inputs").mkdir()
    for name, data in (("b", b"12"), ("a", b"123")):
        (tmp_path / "inputs" / name).write_bytes(data)
    fuzzing.pack("readers", tmp_path / "inputs")
    first = (tmp_path / "corpus" / "readers.zip").read_bytes()
    again = fuzzing.unpacked("readers", tmp_path)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {"a": b"123", "b": b"12"}
    fuzzing.pack("readers", again)
    assert (tmp_path / "corpus" / "readers.zip").read_bytes() == first


def test_a_moving_base_gives_the_right_words_or_an_error(tmp_path: Path) -> None:
    counts, wrong = fuzzing.move_base(1, tmp_path, 40, Place())
    assert wrong == []
    assert counts["right"] + counts["refused"] == counts["reads of a moving base"] == 40


def test_what_cannot_run_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    monkeypatch.setattr(shutil, "which", missing)
    arguments = ["--results", str(tmp_path), "--crashes", str(tmp_path / "crashes")]
    ended = CliRunner().invoke(fuzzing.main, [*arguments, "--part", "readers", "--part", "kernels"])
    assert ended.exit_code == 0
    assert ended.output.count("not run: ") == 2
    assert Result.read("fuzzing", tmp_path).runs == []


@pytest.mark.parametrize("text", ["Done 12 runs in 3 second(s)\n", "x\nDone 12 runs in 3"])
def test_executions_are_read_from_what_a_fuzzer_says(text: str) -> None:
    assert fuzzing._executions(text) == 12
    assert fuzzing._executions("nothing") == 0
