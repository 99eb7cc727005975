"""What the project promises about itself: its commands, imports, pins and installed files."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlsparse_store
from pure_wheel import without_extension

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rlsparse_store"
TEST_COMMAND = (
    "python3 -m venv .venv-test"
    " && .venv-test/bin/pip install -q -c tools/constraints.txt '.[test]'"
    " && .venv-test/bin/python -m pytest"
)


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment, in a fresh process that knows nothing of pytest's."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def sources(package: Path) -> dict[str, bytes]:
    """What is installed of the package, but for the extension that is built from the rest."""
    kinds = (".py", ".pyi", ".typed")
    return {
        str(path.relative_to(package)): path.read_bytes()
        for path in package.rglob("*")
        if path.suffix in kinds or path.name == "py.typed"
    }


# --- Commands -----------------------------------------------------------------------------------


def test_readme_has_the_test_command() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert TEST_COMMAND in [line.strip() for line in lines]


def test_ci_ends_with_the_test_command_of_the_readme() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[-1] == TEST_COMMAND
    assert os.access(ROOT / ".ci/run", os.X_OK)


# --- Imports ------------------------------------------------------------------------------------

LINT_IMPORTS = (
    "-c",
    "from importlinter.cli import lint_imports_command as lint; lint()",
    "--no-cache",
    "--no-logo",
)


def test_import_contracts_hold() -> None:
    result = run(*LINT_IMPORTS)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("path", "source", "contract"),
    [
        ("format/dtypes.py", "import rlsparse_store.delta", "Each layer"),
        ("files/planted.py", "import rlsparse_store.frameworks", "Each layer"),
        ("planted.py", "", "Each layer"),
        ("codec/planted.py", "def late():\n    import torch", "Only five"),
        ("delta/planted.py", "from transformers import AutoModel", "Only five"),
        ("cli/planted.py", "import huggingface_hub.errors", "Only hub"),
    ],
    ids=["upwards", "sideways", "no-layer", "late-torch", "transformers", "hub"],
)
def test_import_contracts_catch_a_violation(
    tmp_path: Path, path: str, source: str, contract: str
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    with (tmp_path / PACKAGE / path).open("a") as file:
        file.write(f"\n{source}\n")
    result = run(*LINT_IMPORTS, cwd=tmp_path)
    assert result.returncode == 1
    broken = re.findall(r"^(.*) BROKEN\b", result.stdout, flags=re.MULTILINE)
    assert len(broken) == 1, result.stdout
    assert broken[0].startswith(contract)


@pytest.mark.parametrize(
    "command", [("-c", f"import {PACKAGE}"), ("-m", PACKAGE, "--help")], ids=["import", "help"]
)
def test_starting_up_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    result = run("-X", "importtime", *command)
    assert result.returncode == 0, result.stderr
    modules = re.findall(r"^import time:.*\|\s*([\w.]+)$", result.stderr, flags=re.MULTILINE)
    loaded = {module.partition(".")[0] for module in modules}
    assert PACKAGE in loaded
    assert not loaded & {"torch", "transformers", "matplotlib", "huggingface_hub", "numpy"}


# --- Distribution -------------------------------------------------------------------------------


def test_installed_package_is_the_checkout() -> None:
    # The suite runs what was installed (see conftest.py), and this makes it speak for the checkout.
    result = run("-P", "-c", f"import {PACKAGE} as package; print(package.__path__[0])")
    assert result.returncode == 0, f"not installed: see the README\n{result.stderr}"
    installed = sources(Path(result.stdout.strip()))
    assert installed.keys() == sources(ROOT / PACKAGE).keys(), (
        "stale: remove the folder `build`, and install again"
    )
    assert installed == sources(ROOT / PACKAGE), "stale: install again"
    assert "py.typed" in installed


def test_the_version_comes_from_one_place() -> None:
    version = rlsparse_store.__version__
    assert importlib.metadata.version("rlsparse-store") == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    latest = re.search(r"^## (\S+) ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert latest[1] == version


def test_install_commands_are_written_in_one_place() -> None:
    naming = {
        path.name
        for path in (ROOT / PACKAGE).rglob("*.py")
        if re.search(r"pip install|rlsparse-store\[", path.read_text())
    }
    assert naming == {"installing.py"}


def test_every_dependency_has_a_floor() -> None:
    table = project()
    asked = chain(table["dependencies"], *table["optional-dependencies"].values())
    for text in asked:
        if Requirement(text).name != table["name"]:
            assert any(bound.operator in {">=", "=="} for bound in Requirement(text).specifier), (
                text
            )


def test_the_pure_wheel_builds_no_extension() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    pure = tomllib.loads(without_extension(settings))
    assert "ext-modules" in tomllib.loads(settings)["tool"]["setuptools"]
    assert "ext-modules" not in pure["tool"]["setuptools"]
    assert "distutils" not in pure["tool"]
    assert pure["project"] == project()


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "tools/constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    table = project()
    asked = chain(table["dependencies"], *table["optional-dependencies"].values())
    wanted = [Requirement(text) for text in asked]
    direct = [need for need in wanted if canonicalize_name(need.name) != table["name"]]
    assert {canonicalize_name(need.name) for need in direct} == versions.keys()
    for need in direct:
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), need
