"""The rig of strangers: what its watch sees."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import pytest

from audit import Watch
from forked import Place, in_fork
from hostile import MARK, Good, strangers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def watched(tmp_path: Path, deed: Callable[[], object]) -> list[str]:
    """What the watch says of a deed, in a child: a hook cannot be removed."""
    (tmp_path / "out").mkdir()

    def work(_: Place) -> list[str]:
        watch = Watch([tmp_path / "out"], 9)
        watch.install()
        deed()
        return watch.violations

    found = in_fork(work, 60)
    assert isinstance(found, list), found
    return found


def test_outputs_are_allowed(tmp_path: Path) -> None:
    assert watched(tmp_path, lambda: (tmp_path / "out" / "file").write_text("x")) == []


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    def deed() -> None:
        (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "out" / "link").write_text("x")

    assert len(watched(tmp_path, deed)) == 1


def test_names_are_relative_to_the_folder_that_is_open(tmp_path: Path) -> None:
    def deed() -> None:
        for folder in (tmp_path / "out", tmp_path):
            descriptor = os.open(folder, os.O_RDONLY)
            os.mkdir("made", dir_fd=descriptor)

    assert watched(tmp_path, deed) == [f"os.mkdir outside: {tmp_path}/made"]


def test_a_death_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="signal"):
        watched(tmp_path, lambda: os.kill(os.getpid(), 9))


def test_there_are_as_many_strangers_as_promised(tmp_path: Path) -> None:
    found = strangers(Good.make(tmp_path / "good"))
    names = {f"{one.family}: {one.name}" for one in found}
    assert len(names) == len(found) >= 150


def test_the_payloads_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Good.make(tmp_path / "good")
    stranger = next(one for one in strangers(good) if one.name == "model.pt beside")
    assert stranger.make is not None
    stranger.make(good, tmp_path / "given", "")
    monkeypatch.chdir(tmp_path)
    pickle.loads((tmp_path / "given" / "model.pt").read_bytes())  # noqa: S301 - our own
    assert (tmp_path / MARK).exists()
