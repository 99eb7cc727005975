"""What the matrices of all engines share: cases, checks, and the file with the result."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Checks", "Seen", "code_digest", "make_cases", "part_of", "results", "write_result"]

HERE: Final = Path(__file__).parent
CODE: Final = HERE.parents[1] / "rlsparse_store" / "integrations"
Seen = dict[str, Any]
"""What an engine computes, by what it is."""


def results(engine: str) -> Path:
    """The file with the result of an engine's matrix."""
    return HERE / "results" / f"{engine}.json"


def code_digest(engine: str) -> str:
    """SHA-256 of an engine's integration, with what all engines share."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ("serving", engine) for file in (CODE / room).glob("*.py")):
        name = file.relative_to(CODE).as_posix()
        digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@dataclass
class Checks:
    """Keeps what was compared.

    Attributes:
        compared: What engines that serve the same compute alike.
        lines: A line per check.
        times: Seconds, by what took them.
        wrong: The checks that failed.
    """

    compared: tuple[str, ...]
    lines: list[str] = field(default_factory=list, kw_only=True)
    times: dict[str, float] = field(default_factory=dict, kw_only=True)
    wrong: list[str] = field(default_factory=list, kw_only=True)

    def check(self, what: str, *, passed: bool, detail: str = "") -> None:
        """Keep the result of a check."""
        line = f"{'ok' if passed else 'FAILED'}  {what}{': ' if detail else ''}{detail}"
        self.lines.append(line)
        click.echo(line)
        if not passed:
            self.wrong.append(line)

    def same(self, what: str, one: Seen, other: Seen) -> None:
        """Check that two engines compute the same, and that weights were there to be hashed."""
        differing = [key for key in self.compared if one.get(key) != other.get(key)]
        hashed = [len(rank) for rank in one.get("weights", [])]
        error = other.get("error") or one.get("error")
        detail = f"{hashed} parameters hashed" if "weights" in self.compared else ""
        if error:
            detail = error[-600:]
        elif differing:
            detail = f"differ in {', '.join(differing)}"
        self.check(what, passed=not (differing or error) and all(hashed), detail=detail)

    def differ(self, what: str, one: Seen, other: Seen) -> None:
        """Check that two engines compute something else in every respect."""
        same = [key for key in self.compared if one.get(key) == other.get(key)]
        self.check(what, passed=not same, detail=f"equal in {', '.join(same)}" if same else "")

    def refused(self, what: str, seen: Seen, message: str, still: Seen | None = None) -> None:
        """Check that an engine refuses with a message, and still has its weights."""
        error = str(seen.get("error", ""))
        self.check(what, passed=message in error, detail="" if message in error else error[-600:])
        if still is not None:
            self.same(f"{what}; it still serves", still, {**seen, "error": None})


def make_cases(python: str, cases: Path, steps: dict[str, int]) -> None:
    """Make the cases of these names with as many steps, each with a damaged delta beside its run.

    Args:
        python: An interpreter with transformers.
        cases: Folder of all cases.
        steps: Number of steps, by the case's name.
    """
    for name, count in steps.items():
        make = [python, str(HERE / "cases.py"), str(cases), name, str(count)]
        if not (cases / name / "run").is_dir():
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        _damage(cases / name)


def _damage(case: Path) -> None:
    """Make a delta with a flipped byte, beside the run."""
    bad = case / "bad" / "damaged"
    if bad.exists():
        return
    shutil.copytree(case / "run" / "step-1", bad)
    file = bad / "rlsparse" / "delta.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def part_of(line: str) -> str:
    """The part of the matrix that a line belongs to: ``ok  part: what``."""
    return line.split(maxsplit=1)[1].partition(":")[0]


def write_result(
    engine: str, checks: Checks, python: str, parts: Collection[str] | None = None
) -> None:
    """Write what the matrix found, as it is committed.

    Args:
        engine: The engine's package.
        checks: What was found.
        python: The interpreter of the engine's environment.
        parts: The parts that were run, if each can be run by itself. Of the others, the file keeps
            what was found with the same code and the same versions.
    """
    lines = (
        "import json,platform;from importlib.metadata import version;"
        f"import {engine};found={{'{engine}':{engine}.__version__}};"
        "found|={name:version(name) for name in ('torch','transformers')};"
        "print(json.dumps(found|{'python':platform.python_version()}))"
    )
    found = subprocess.run([python, "-c", lines], check=True, capture_output=True, text=True)
    file, same = (
        results(engine),
        {
            "code": code_digest(engine),
            "versions": json.loads(found.stdout.splitlines()[-1]),
        },
    )
    kept: list[str] = []
    if parts is not None and file.exists():
        before = json.loads(file.read_text("utf-8"))
        if same.items() <= before.items():
            kept = [line for line in before["checks"] if part_of(line) not in parts]
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **same,
        "checks": kept + checks.lines,
        "failed": sum(line.startswith("FAILED") for line in kept) + len(checks.wrong),
        "seconds": checks.times,
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
