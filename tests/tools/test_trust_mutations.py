"""The rig of mutations: it sees what it looks for."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

import mutations
from conformance.readers import load_decoder
from forked import Died, Place, in_fork, run_batches
from result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from mutations import Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return mutations.make_rig(tmp_path_factory.mktemp("rig"), [])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "BATCH", 40)


def ran(rig: Rig, folder: Path) -> Result:
    run_batches(rig.batch, Result.read("mutations", folder), seconds=0)
    return Result.read("mutations", folder)


def test_readers_agree_on_a_batch(rig: Rig, tmp_path: Path) -> None:
    result = ran(rig, tmp_path)
    assert result.faults == []
    assert result.totals()["mutations"] == 40
    assert result.totals()["sealed again"] == 20
    assert result.totals()["read from files"] == 6


def test_rows_of_a_real_pair_are_subjects(tmp_path: Path) -> None:
    decoder = load_decoder()
    made = list(mutations.of_generated_pairs(tmp_path / "made", decoder))
    pair = (tmp_path / "made" / made[0].name / "base", tmp_path / "made" / made[0].name / "tuned")
    found = list(mutations.of_real_pair(0, *pair, tmp_path / "real", decoder))
    assert [subject.origin for subject in found] == ["real pairs"]
    assert found[0].draft is not None
    assert {t.shape for t in found[0].draft.index.tensors} == {(16, 100)}


@pytest.mark.parametrize("fault", ["other code", "untyped", "death", "memory", "addresses"])
def test_it_sees_faults(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def outcome(*_: object) -> str:
        if fault == "untyped":
            raise KeyError
        if fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "memory":
            bytearray(2 * mutations.ROOM)
        if fault == "addresses":
            bytearray(2 * mutations.ADDRESSES)
        return "no code"

    monkeypatch.setattr(mutations, "library_outcome", outcome)
    found = [fault.what for fault in ran(rig, tmp_path).faults]
    expected = {
        "other code": "library: no code, second decoder: ",
        "untyped": "the library raises an untyped KeyError",
        "death": "the process ended: signal 9",
        "memory": "took 1",
        "addresses": "the library raises an untyped MemoryError",
    }
    assert any(what.startswith(expected[fault]) for what in found)


def test_the_bounds_of_memory_hold() -> None:
    assert mutations.bounds_hold()


def test_a_child_that_is_silent_is_ended() -> None:
    def work(place: Place) -> None:
        place.set(7)
        time.sleep(1000)

    found = in_fork(work, 0.2)
    assert isinstance(found, Died)
    assert found.place == 7
