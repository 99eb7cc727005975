#!/usr/bin/env python3
"""Kill every command, at each call that changes the file system and at random moments.

    python tools/trust/kills.py --seconds 60
    python tools/trust/kills.py --seconds 600 --command watch
    python tools/trust/kills.py --reproduce watch/before/17

A round takes one command. It is killed before each of its calls that change the file system, within
each write, at each exchange with the Hub, and as often at random moments. After each kill: what is
there under final names is the old state or the new one; what the command had reported is there; and
the same command then succeeds and leaves what an undisturbed one leaves.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
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

PLANS: Final = {
    "before": (Action.KILL, CHANGES),
    "within": (Action.KILL_HALFWAY, frozenset({Op.WRITE})),
    "exchanging": (Action.KILL, frozenset({Op.SOCKET, Op.TRANSFER})),
}
"""What a kill hits: a call that changes files, the middle of a write, a call to the Hub."""


def judge_kill(bench: Bench, outcome: Outcome) -> str:
    """What is torn, lost or left behind after a kill; empty if nothing is."""
    if outcome.is_hung:
        return "hangs"
    if outcome.code not in {0, -9}:
        return f"exit code {outcome.code}: {outcome.err}"
    return bench.judge(outcome) or bench.judge_rerun()


def kills(bench: Bench, rng: random.Random) -> Iterator[tuple[str, Outcome, str]]:
    """One round of kills, in any order.

    Yields:
        The place of the kill, the outcome, and what is wrong with it.
    """
    places: list[tuple[str, float]] = []
    seconds = 0.0
    for name, (_, ops) in PLANS.items():
        bench.reset()
        begun = time.monotonic()
        counted = bench.run(Plan(ops=ops)).counted
        seconds = time.monotonic() - begun
        places += [(name, number) for number in range(1, counted + 1)]
    places += [("at random", seconds * rng.random()) for _ in places]
    rng.shuffle(places)
    for name, number in places:
        bench.reset()
        outcome = _kill(bench, name, number)
        yield f"{name}/{number:g}", outcome, judge_kill(bench, outcome)


def _kill(bench: Bench, name: str, number: float) -> Outcome:
    if name == "at random":
        return bench.run(Plan(), kill_after=number)
    action, ops = PLANS[name]
    return bench.run(Plan(action=action, ops=ops, first=int(number)))


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long to go on.")
@click.option("--command", type=click.Choice([*SUBJECTS]), help="Only this command.")
@click.option("--reproduce", metavar="COMMAND/PLACE/NUMBER", help="Kill once, and print it.")
@click.option("--root", type=Path, help="Folder for the trials.  [default: in memory]")
@click.option("--results", type=Path, default=RESULTS, help="Folder of the results.")
def main(
    seconds: float, command: str | None, reproduce: str | None, root: Path | None, results: Path
) -> None:
    """Kill every command with SIGKILL, at each call that changes files and at random moments."""
    with rig_folder(root) as folder:
        if reproduce is not None:
            _reproduce(folder, *reproduce.split("/"))
            return
        result = Result.read("kills", results)
        result.describe(
            "A command is killed with SIGKILL: before each call that changes the file system, "
            "within each write, at each exchange with the Hub, and at random moments. A fault is a "
            "torn or lost result, or litter or a failure of the next command.",
            {"kills": 10_000, **{f"kills on {kind}": 200 for kind in OTHER_FILE_SYSTEMS}},
        )
        end = time.monotonic() + seconds
        for seed in result.seeds(seconds):
            name = command or COMMANDS[seed % len(COMMANDS)]
            bench = open_bench(folder, name)
            counts: Counter[str] = Counter({"kills": 0, "finished before the kill": 0})
            faults: dict[str, Fault] = {}
            for place, outcome, wrong in kills(bench, random.Random(seed)):  # noqa: S311
                is_killed = outcome.code < 0
                counts["kills"] += is_killed
                counts[f"kills: {name}"] += is_killed
                counts[f"kills on {file_system(folder)}"] += is_killed
                counts["finished before the kill"] += not is_killed
                if wrong:
                    at = f"{outcome.op.name} {outcome.place}" if outcome.hit else "a random moment"
                    what = without_numbers(f"{name}, at {at}: {wrong}")
                    faults.setdefault(what, Fault(what, f"--reproduce {name}/{place}"))
                if time.monotonic() > end:
                    break
            add_found(result, counts, faults)
        click.echo(result.summary())
    sys.exit(result.failed())


def _reproduce(folder: Path, name: str, place: str, number: str) -> None:
    bench = open_bench(folder, name)
    bench.reset()
    outcome = _kill(bench, place, float(number))
    click.echo(outcome)
    click.echo(judge_kill(bench, outcome) or "nothing is wrong")


if __name__ == "__main__":
    main()
