"""The documents: pictures are what the tool draws, tables are what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from drawings import IMAGES, draw_all
from rlsparse_store import errors

ROOT = Path(__file__).parents[2]


def rows(page: str) -> list[list[str]]:
    """The rows of a page's tables, cell by cell."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_pictures_are_what_the_tool_draws() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in IMAGES.iterdir()}
    assert committed == draw_all(), "run `python tools/docs/drawings.py`"


def test_every_error_has_a_cause_and_a_remedy() -> None:
    listed = [row for row in rows("specs/troubleshooting.md") if row[0].endswith("Error`")]
    names = [row[0].strip("`") for row in listed]
    assert sorted(names) == sorted(
        name for name in errors.__all__ if name.endswith("Error") and name != "RlsparseError"
    )
    for name, (_, exit_code, cause, remedy) in zip(names, listed, strict=True):
        assert int(exit_code) == getattr(errors, name).exit_code, name
        assert cause.endswith("."), name
        assert remedy.endswith("."), name


def test_every_room_is_in_the_architecture() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = [room.strip(" ()") for layer in layers for room in layer.split("|")]
    listed = [
        room for row in rows("specs/architecture.md") for room in re.findall(r"`(\w+)`", row[0])
    ]
    assert sorted(listed) == sorted(rooms)
