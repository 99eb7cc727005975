"""The page about reliability says what the rigs counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliability_page import PAGE, with_tables
from result import Fault, Result

if TYPE_CHECKING:
    from pathlib import Path


def test_the_page_is_what_was_counted_last() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "| mutations |" in text
    assert text == with_tables(text), "run `python tools/trust/reliability_page.py`"


def test_tables_tell_goals_totals_and_faults(tmp_path: Path) -> None:
    result = Result.read("rig", tmp_path)
    result.describe("Tries.", {"tries": 10_000})
    result.add({"tries": 7}, [Fault("torn | twice", "seed 1"), Fault("lost", "seed 2", mended="x")])
    page = with_tables(PAGE.read_text(encoding="utf-8"), tmp_path)
    assert "| rig | Tries. | 10,000 tries | 7 | 1 | 0.0 |" in page
    assert "| rig | torn / twice | no |\n| rig | lost | x |" in page
