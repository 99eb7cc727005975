"""What a rig did and found: one JSON file per rig, which later runs add to.

    result = Result.read("mutations", folder)
    result.describe(what="…", goal={"mutations": 10_000_000})
    for seed in result.seeds(seconds=60):
        counts, faults = try_some(seed)
        result.add(counts, faults)

The file is the state, too. A seed is taken from it before it is used, so processes that run one
rig at the same time take different ones, and what they count is added up. A seed whose run is cut
off is lost, and counts nothing.

The fields of ``results/RIG.json``:

    schema_version  1
    rig             name of the rig: `python tools/trust/RIG.py` runs it
    what            what it does, and what a fault is, in one sentence
    goal            what it is to reach: numbers by names of counts
    next_seed       the first seed that no run has taken
    runs            one for each commit and set of versions:
                      commit    of the checkout, with "+" if the package was changed since
                      date      of the last addition
                      versions  of Python, the system's kernel and the packages
                      seconds   of all that was added
                      counts    numbers by name
    faults          what was found wrong:
                      what      one line
                      case      what makes it happen again: a seed, a call, a command
                      commit    where it was found
                      mended    by hand: the test that holds it mended, or why it is no fault
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parent.parent.parent
RESULTS: Final = Path(__file__).resolve().parent / "results"
MOST_TOLD: Final = 5
"""Faults that the last lines tell."""

SCHEMA_VERSION: Final = 1
PACKAGES: Final = ("rlsparse-store", "numpy", "zstandard", "xxhash", "huggingface_hub")


@dataclass(frozen=True)
class Fault:
    """Something that a rig found wrong.

    Attributes:
        what: One line.
        case: What makes it happen again: a seed, a call, a command.
        commit: Where it was found; filled in when it is added.
        mended: The test that holds it mended; written by hand.
    """

    what: str
    case: str
    commit: str = ""
    mended: str = ""


@dataclass
class Run:
    """What was counted at one commit with one set of versions."""

    commit: str
    versions: dict[str, str]
    date: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Result:
    """A rig's file.

    Attributes:
        path: The file.
        rig: Name of the rig.
        what: What it does, and what a fault is.
        goal: What it is to reach.
        next_seed: The first seed that no run has taken.
        runs: What was counted.
        faults: What was found wrong.
        versions: Of the rig's own packages, beside those of :data:`PACKAGES`.
    """

    path: Path
    rig: str
    what: str = ""
    goal: dict[str, int] = field(default_factory=dict)
    next_seed: int = 1
    runs: list[Run] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic, repr=False)
    _found: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def read(cls, rig: str, folder: Path = RESULTS) -> Result:
        """Read a rig's file; a rig without one starts anew."""
        result = cls(folder / f"{rig}.json", rig)
        result._load()
        return result

    def describe(self, what: str, goal: Mapping[str, int], packages: Sequence[str] = ()) -> None:
        """Set what the file says of the rig.

        Args:
            what: What it does, and what a fault is, in one sentence.
            goal: What it is to reach: numbers by names of counts.
            packages: Further packages whose versions matter.
        """
        self.what, self.goal = what, dict(goal)
        self.versions = _versions(packages)

    def seeds(self, seconds: float) -> Iterator[int]:
        """Take seeds until the time is up; at least one.

        Args:
            seconds: How long to go on taking seeds. The last one may take longer.

        Yields:
            A seed that no other run takes.
        """
        end = time.monotonic() + seconds
        while True:
            with self._locked():
                seed = self.next_seed
                self.next_seed += 1
                self._save()
            yield seed
            if time.monotonic() >= end:
                return

    def add(self, counts: Mapping[str, int], faults: Sequence[Fault] = ()) -> None:
        """Add what was counted and found since the last time, and write the file."""
        now = time.monotonic()
        commit, versions = _commit(), self.versions or _versions(())
        with self._locked():
            run = self._run(commit, versions)
            run.date = datetime.now(UTC).date().isoformat()
            run.seconds = round(run.seconds + now - self._since, 1)
            for name, count in counts.items():  # a count of nothing is told, too
                run.counts[name] = run.counts.get(name, 0) + count
            known = {fault.what for fault in self.faults if not fault.mended}
            new = [fault for fault in faults if fault.what not in known]
            self.faults += [Fault(fault.what, fault.case, commit, fault.mended) for fault in new]
            self._save()
        self._since = now
        self._found += [fault.what for fault in faults]

    def totals(self) -> Counter[str]:
        """The counts of all runs."""
        total: Counter[str] = Counter()
        for run in self.runs:
            total.update(run.counts)
        return total

    def seconds(self) -> float:
        """The seconds of all runs."""
        return sum(run.seconds for run in self.runs)

    def summary(self) -> str:
        """The counts of all runs, and what this one found: a line, and one for each first fault."""
        # A name with a comma is of a single case.
        counts = [(name, count) for name, count in self.totals().items() if "," not in name]
        told = ", ".join(f"{count:,} {name}" for name, count in counts)
        found = f"{self.rig}: {told}; faults in this run: {len(self._found)}"
        return "\n".join([found, *self._found[:MOST_TOLD]])

    def failed(self) -> bool:
        """Whether this process found a fault."""
        return bool(self._found)

    def _run(self, commit: str, versions: dict[str, str]) -> Run:
        for run in self.runs:
            if (run.commit, run.versions) == (commit, versions):
                return run
        self.runs.append(Run(commit, versions))
        return self.runs[-1]

    def _load(self) -> None:
        if not self.path.exists():
            return
        stored = json.loads(self.path.read_text(encoding="utf-8"))
        if stored["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"{self.path}: another schema version")
        self.what = self.what or stored["what"]
        self.goal = self.goal or stored["goal"]
        self.next_seed = stored["next_seed"]
        self.runs = [Run(**run) for run in stored["runs"]]
        self.faults = [Fault(**fault) for fault in stored["faults"]]

    def _save(self) -> None:
        fields = {
            "schema_version": SCHEMA_VERSION,
            "rig": self.rig,
            "what": self.what,
            "goal": self.goal,
            "next_seed": self.next_seed,
            "runs": [asdict(run) for run in self.runs],
            "faults": [asdict(fault) for fault in self.faults],
        }
        text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The file as it is now, which no other process writes until the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            yield
        finally:
            os.close(lock)


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(ROOT), *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def _commit() -> str:
    """The commit of the checkout, with a plus sign if the package differs from it."""
    try:
        changed = _git("status", "--porcelain", "--", "rlsparse_store")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # a source distribution has no history
        return metadata.version("rlsparse-store")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version(), "system": platform.system()}
    for name in (*PACKAGES, *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
