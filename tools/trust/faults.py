#!/usr/bin/env python3
"""Fail every call of every command, once for each error that it may return.

    python tools/trust/faults.py --seconds 60
    python tools/trust/faults.py --seconds 600 --command watch --case "no space"
    python tools/trust/faults.py --reproduce "watch/no space/17"

A sweep takes one command and one case, counts the calls of an undisturbed run, and fails each of
them in a run of its own. Sweeps that were not completed on this file system come first, each from
where it was left. After each run: the command ended; its exit code is 0 with the whole result, or 1
with one line on standard error; nothing is torn or lost; the same command then succeeds and leaves
what an undisturbed one leaves.
"""

from __future__ import annotations

import errno
import itertools
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from interposer import CHANGES, Action, Op, Plan
from result import RESULTS, Fault, Result
from rig import (
    OTHER_FILE_SYSTEMS,
    add_found,
    file_system,
    open_bench,
    rig_folder,
    without_numbers,
)
from subjects import COMMANDS, SUBJECTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interposer import Outcome
    from subjects import Bench

_GROWS: Final = CHANGES - {Op.UNLINK, Op.RMDIR, Op.TOUCH}
_FILES: Final = CHANGES | {Op.OPEN, Op.READ, Op.STAT, Op.LIST, Op.CLOSE}
_OPENS: Final = frozenset({Op.OPEN, Op.CREATE, Op.LIST, Op.SOCKET})
_WAITS: Final = frozenset({Op.OPEN, Op.CREATE, Op.READ, Op.WRITE, Op.FLUSH})
_MOVES: Final = frozenset({Op.READ, Op.WRITE})
_ENDLESS: Final = 1 << 40


@dataclass(frozen=True)
class Case:
    """An error, and the calls that return it.

    Attributes:
        ops: The calls.
        error: The error; none for calls that do only a part of their work.
        is_lasting: Whether all later calls fail, too.
        passes: Whether the command must succeed in spite of it.
    """

    ops: frozenset[Op]
    error: int = 0
    is_lasting: bool = False
    passes: bool = False

    def plan(self, number: int) -> Plan:
        """The plan that hits the call of a number."""
        return Plan(
            action=Action.FAIL if self.error else Action.SHORTEN,
            ops=self.ops,
            first=number,
            last=_ENDLESS if self.is_lasting else number,
            error=self.error,
        )


CASES: Final = {
    "no space": Case(_GROWS, errno.ENOSPC),
    "no space from then on": Case(_GROWS, errno.ENOSPC, is_lasting=True),
    "quota": Case(_GROWS | {Op.CLOSE}, errno.EDQUOT),
    "too many open files": Case(_OPENS, errno.EMFILE),
    "interrupted call": Case(_WAITS, errno.EINTR, passes=True),
    "short read or write": Case(_MOVES, passes=True),
    "every read and write short": Case(_MOVES, is_lasting=True, passes=True),
    "no memory": Case(frozenset({Op.ALLOCATE}), errno.ENOMEM),
    "no thread": Case(frozenset({Op.THREAD}), errno.EAGAIN),
    "connection reset": Case(frozenset({Op.TRANSFER}), errno.ECONNRESET),
    # The longest come last.
    "input or output error": Case(_FILES, errno.EIO),
    "input or output errors from then on": Case(_FILES, errno.EIO, is_lasting=True),
}

NATIVE: Final = (r"_kernels", r"zstandard", r"xxhash")
"""Libraries whose allocations fail: regular expressions for their paths."""

SWEEPS: Final = [(command, case) for case in CASES for command in COMMANDS]


def judge_fault(bench: Bench, case: Case, outcome: Outcome) -> str:
    """What is wrong with how a command took a fault; empty if nothing is."""
    if outcome.is_hung:
        return "hangs"
    if outcome.code < 0:
        return f"died of signal {-outcome.code}"
    if "Traceback" in outcome.err or outcome.code not in {0, 1}:
        last = outcome.err.rstrip().rpartition("\n")[2]
        return f"exit code {outcome.code}: {last}"
    if outcome.code and case.passes:
        return f"fails: {outcome.err}"
    lines = [line for line in outcome.err.splitlines() if not _is_of_client(line)]
    # A watcher has a line for each checkpoint that it cannot store or thin.
    is_one = len(lines) == 1 or bench.subject.name == "watch"
    prefixes = ("rlsparse: ", f"{bench.work}/")
    if outcome.code and not (is_one and all(line.startswith(prefixes) for line in lines)):
        return f"{len(lines)} lines: {outcome.err}"
    return bench.judge(outcome) or bench.judge_rerun()


def _is_of_client(line: str) -> bool:
    """Whether the Hub's client says this by itself: it warns, and logs."""
    return line.startswith("rlsparse: warning: ") or not line.startswith(("rlsparse: ", "/"))


def sweep(bench: Bench, case: Case, done: int) -> Iterator[tuple[int, Outcome, str]]:
    """Fail one call in each run: all that an undisturbed run has, and those that come after them.

    Args:
        bench: Of the command.
        case: How calls fail.
        done: Calls that an earlier run of the rig failed.

    Yields:
        The number of the call, the outcome, and what is wrong with it.
    """
    bench.reset()
    counted = bench.run(Plan(ops=case.ops)).counted
    for number in itertools.count(done + 1):
        bench.reset()
        outcome = bench.run(case.plan(number))
        if outcome.hit:
            yield number, outcome, judge_fault(bench, case, outcome)
        elif number > counted:
            return


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long to go on.")
@click.option("--command", type=click.Choice([*SUBJECTS]), help="Only this command.")
@click.option("--case", "label", type=click.Choice([*CASES]), help="Only this case.")
@click.option("--reproduce", metavar="COMMAND/CASE/CALL", help="Run one trial, and print it.")
@click.option("--root", type=Path, help="Folder for the trials.  [default: in memory]")
@click.option("--results", type=Path, default=RESULTS, help="Folder of the results.")
def main(
    seconds: float,
    command: str | None,
    label: str | None,
    reproduce: str | None,
    root: Path | None,
    results: Path,
) -> None:
    """Fail every call of every command, once for each error that it may return."""
    with rig_folder(root) as folder:
        if reproduce is not None:
            _reproduce(folder, *reproduce.split("/"))
            return
        result = Result.read("faults", results)
        result.describe(
            "Every call of a command to the file system, the network, native memory and threads "
            "fails once. A fault is a hang, a death, an exit code other than 0 or 1, more or less "
            "than one line of error, a torn or lost result, or litter after the next command.",
            {
                "sweeps completed on tmpfs": len(SWEEPS),
                **{f"calls failed on {kind}": 500 for kind in OTHER_FILE_SYSTEMS},
            },
        )
        where = file_system(folder)
        commands, cases = [command] if command else COMMANDS, [label] if label else CASES
        chosen = [(name, case) for case in cases for name in commands]
        end = time.monotonic() + seconds
        for _ in result.seeds(seconds):
            before = result.totals()
            name, case = min(chosen, key=lambda pair: before[_sweep(pair[0], pair[1], where)])
            this = _sweep(name, case, where)
            is_first, begun = not before[this], f"{this}, calls of the first"
            bench = open_bench(folder, name)
            bench.trials.deny_allocations_of(NATIVE)
            counts: Counter[str] = Counter({"calls failed": 0})
            faults: dict[str, Fault] = {}
            is_complete = True
            for number, outcome, wrong in sweep(bench, CASES[case], before[begun] * is_first):
                counts["calls failed"] += 1
                counts[begun] += is_first
                counts[f"calls failed: {name}"] += 1
                counts[f"calls failed on {where}"] += 1
                if wrong:
                    what = without_numbers(
                        f"{name}, {case}, {outcome.op.name} {outcome.place}: {wrong}"
                    )
                    faults.setdefault(what, Fault(what, f"--reproduce '{name}/{case}/{number}'"))
                if time.monotonic() > end:
                    is_complete = False
                    break
            if is_complete:
                counts[this] += 1
                counts[f"sweeps completed on {where}"] += is_first
            add_found(result, counts, faults)
        click.echo(result.summary())
    sys.exit(result.failed())


def _sweep(name: str, case: str, where: str) -> str:
    """A sweep as it is counted once for each time that it was completed."""
    return f"{where}: {name}, {case}"


def _reproduce(folder: Path, name: str, case: str, number: str) -> None:
    bench = open_bench(folder, name)
    bench.trials.deny_allocations_of(NATIVE)
    bench.reset()
    outcome = bench.run(CASES[case].plan(int(number)))
    click.echo(outcome)
    click.echo(judge_fault(bench, CASES[case], outcome) or "nothing is wrong")


if __name__ == "__main__":
    main()
