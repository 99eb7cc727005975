"""Files that released versions wrote are read, for good: ``specs/released/``."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import released
from conformance.readers import load_decoder, second_outcome
from released import RELEASED, STEPS, digests
from rlsparse_store import __version__, apply_delta, inspect_run
from rlsparse_store.delta import verify_run
from rlsparse_store.format.manifest import FORMAT_VERSION

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {
    path.parent.name: json.loads(path.read_text()) for path in RELEASED.glob("*/about.json")
}

DECODER = load_decoder()


def test_this_version_has_its_files() -> None:
    assert VERSIONS[__version__]["format"] == FORMAT_VERSION, "run tools/released.py"


def test_candidates_are_those_of_this_version() -> None:
    candidates = [version for version, about in VERSIONS.items() if not about["final"]]
    assert candidates in ([], [__version__]), "run tools/released.py"


@pytest.mark.parametrize("version", VERSIONS)
def test_files_are_those_that_were_written(version: str) -> None:
    about = VERSIONS[version]
    assert about["package"] == version
    assert digests(RELEASED / version) == about["files"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("version", VERSIONS)
def test_deltas_are_rebuilt(version: str, step: str, tmp_path: Path) -> None:
    folder, expected = RELEASED / version, VERSIONS[version]["rebuilt"][step]
    apply_delta(folder / "run" / step, tmp_path / "out", base=folder / "base", threads=1)
    assert digests(tmp_path / "out") == expected
    weights = {name: digest for name, digest in expected.items() if name != "config.json"}
    base = DECODER.read_checkpoint(folder / "base")
    assert second_outcome(DECODER, folder / "run" / step, base, {}) == weights


@pytest.mark.parametrize("version", VERSIONS)
def test_runs_are_read(version: str, tmp_path: Path) -> None:
    shutil.copytree(RELEASED / version / "run", tmp_path / "run")
    report = inspect_run(tmp_path / "run")
    assert [(entry.name, entry.step) for entry in report.deltas] == [
        ("step-100", 100),
        ("step-200", 200),
    ]
    verify_run(tmp_path / "run", base=RELEASED / version / "base", threads=1)


@pytest.mark.parametrize("version", VERSIONS)
def test_masks_are_read(version: str) -> None:
    pytest.importorskip("torch")
    from rlsparse_store.torch import load_mask  # noqa: PLC0415 - needs torch

    mask = load_mask(RELEASED / version / "mask.safetensors")
    counts = {name: mask.count(name) for name in mask}
    assert counts == VERSIONS[version]["mask"]


def run_tool(out: Path, *options: str) -> int:
    """Run the tool that writes the files."""
    try:
        released.main(["--out", str(out), *options])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_the_files_of_a_release_are_not_written_again(tmp_path: Path) -> None:
    assert run_tool(tmp_path) == 0
    assert run_tool(tmp_path, "--final") == 0
    about: dict[str, Any] = json.loads((tmp_path / __version__ / "about.json").read_text())
    assert about["final"]
    assert run_tool(tmp_path) == 1


def test_a_candidate_makes_room_for_the_next(tmp_path: Path) -> None:
    shutil.copytree(RELEASED / __version__, tmp_path / "0.0.1")
    assert run_tool(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0.0.1", __version__} - (
        set() if VERSIONS[__version__]["final"] else {"0.0.1"}
    )
