"""The files of the rigs: what runs add to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from result import Fault, Result

if TYPE_CHECKING:
    from pathlib import Path


def test_runs_add_up_and_take_different_seeds(tmp_path: Path) -> None:
    first, second = Result.read("rig", tmp_path), Result.read("rig", tmp_path)
    first.describe("Tries.", {"tries": 10})
    one, two = first.seeds(seconds=60), second.seeds(seconds=0)
    assert [next(one), next(two), next(one)] == [1, 2, 3]
    first.add({"tries": 2, "torn": 0})
    second.add({"tries": 3, "torn": 0})
    again = Result.read("rig", tmp_path)
    assert again.totals() == {"tries": 5, "torn": 0}
    assert (again.what, again.goal, again.next_seed) == ("Tries.", {"tries": 10}, 4)
    assert len(again.runs) == 1  # one commit, one set of versions
    assert not list(two)


def test_a_fault_is_listed_once_and_fails_the_run(tmp_path: Path) -> None:
    result = Result.read("rig", tmp_path)
    assert not result.failed()
    result.add({"tries": 1}, [Fault("torn", "seed 1")])
    result.add({"tries": 1}, [Fault("torn", "seed 2")])
    assert result.failed()
    again = Result.read("rig", tmp_path)
    assert [fault.case for fault in again.faults] == ["seed 1"]
    assert again.faults[0].commit
    assert not again.failed()


def test_a_fault_that_was_mended_and_comes_back_is_listed_again(tmp_path: Path) -> None:
    Result.read("rig", tmp_path).add({}, [Fault("torn", "seed 1")])
    path = tmp_path / "rig.json"
    stored = json.loads(path.read_text())
    stored["faults"][0]["mended"] = "tests/test_torn.py"
    path.write_text(json.dumps(stored))
    Result.read("rig", tmp_path).add({}, [Fault("torn", "seed 2")])
    assert [fault.case for fault in Result.read("rig", tmp_path).faults] == ["seed 1", "seed 2"]
