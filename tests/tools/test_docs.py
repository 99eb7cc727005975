"""The documents: pictures are what the tool draws, tables are what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from drawings import IMAGES, draw_all
from rlsparse_store import encode_delta, errors, from_delta, open_delta
from rlsparse_store.cli.encode import encode_command
from rlsparse_store.cli.watch import watch_command
from rlsparse_store.torch import DeltaEncoder, DeviceCoder, patch_
from size_tables import PLACES, with_table

ROOT = Path(__file__).parents[2]
GUIDES = sorted(path.stem for path in (ROOT / "specs/guides").glob("*.md"))


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


@pytest.mark.parametrize("page", PLACES)
def test_tables_are_what_was_measured_last(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "| **rlsparse_store** |" in text
    assert text == with_table(page), "run `python tools/docs/size_tables.py`"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    # The two commands that set up an environment are one line each, to be copied.
    assert [line for line in lines if len(line) > 100 and "-m venv" not in line] == []


LABEL = "experimental: never run on a gpu"
"""No GPU was ever at hand: users read this where a device can be named (specs/quickstart.md)."""


def folded(text: str) -> str:
    return " ".join(text.split()).lower()


@pytest.mark.parametrize("page", ["README.md", *(f"specs/guides/{p}.md" for p in GUIDES)])
def test_pages_that_name_a_device_say_that_it_is_experimental(page: str) -> None:
    text = folded((ROOT / page).read_text(encoding="utf-8"))
    assert LABEL in text or not re.search(r"--device|device(_map)?=\S*cuda|devicecoder", text)


@pytest.mark.parametrize("command", [encode_command, watch_command])
def test_the_help_of_device_says_that_it_is_experimental(command: click.Command) -> None:
    (option,) = (option for option in command.params if option.name == "device")
    assert isinstance(option, click.Option)
    assert LABEL in folded(option.help or "")


@pytest.mark.parametrize(
    "documented",
    [open_delta, encode_delta, from_delta, DeltaEncoder, DeviceCoder, patch_],
)
def test_docstrings_of_devices_say_that_they_are_experimental(documented: object) -> None:
    assert LABEL in folded(documented.__doc__ or "")
