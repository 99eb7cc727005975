"""``rlsparse demo``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlsparse_store.cli.inspect import print_report
from rlsparse_store.cli.output import print_table
from rlsparse_store.delta.apply import apply_delta
from rlsparse_store.delta.encode import encode_delta
from rlsparse_store.delta.inspect import inspect_delta
from rlsparse_store.delta.units import format_bytes, format_percent
from rlsparse_store.delta.verify import verify_delta
from rlsparse_store.errors import MissingDependencyError, OutputError, ResultMismatchError
from rlsparse_store.format.names import printable
from rlsparse_store.installing import install_command

if TYPE_CHECKING:
    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.demo.case import DemoCase

__all__ = ["demo_command"]

# Measured before (`specs/rationale.md`): their base cannot be trained in a minute.
_MEASURED = (
    ("MiniLM encoder, GRPO, 10 steps (measured before)", 22_713_216, 0.01163, 45_426_432, 154_450),
    ("MiniLM encoder, GRPO, 60 steps (measured before)", 22_713_216, 0.04790, 45_426_432, 603_687),
)


@click.command("demo")
@click.option(
    "--out",
    "-o",
    default="rlsparse-demo",
    show_default=True,
    metavar="DIR",
    help="Folder to write, which must not exist.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)
@click.option("--quick", is_flag=True, help="Train for seconds only, too short to learn much.")
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Also print standard errors, settings, the delta's tensors, and sizes of larger cases.",
)
def demo_command(out: str, seed: int, quick: bool, verbose: bool) -> None:  # noqa: FBT001 - named by click
    """Train a tiny language model, tune it with GRPO, and store the result as a delta.

    Takes about a minute on two cores and needs no network. The reward is verified, and all files
    stay in DIR.
    """
    click.echo("rlsparse demo: a tiny model learns sums, then GRPO tunes it. Loading torch …")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = "exists: remove it, or choose another folder with --out"
        raise OutputError(msg, file=printable(out))
    case = _make_case(folder, seed, quick=quick)
    if verbose:
        _print_rewards(case)
    delta = folder / "delta"
    _print_command(f"rlsparse encode {case.base} {case.tuned} -o {delta}")
    report = encode_delta(case.base, case.tuned, delta)
    if verbose:
        _print_command(f"rlsparse inspect {delta}")
        print_report(inspect_delta(delta))
    _print_command(f"rlsparse apply {delta} --base {case.base} -o {folder / 'rebuilt'}")
    apply_delta(delta, folder / "rebuilt", base=case.base)
    _print_command(f"rlsparse verify {delta} --base {case.base} --tuned {folder / 'rebuilt'}")
    verify_delta(delta, base=case.base, tuned=folder / "rebuilt")
    _require_equal_files(case.tuned, folder / "rebuilt")
    if verbose:
        _print_larger_cases(case, report)
    _print_result(case, report)


def _make_case(folder: Path, seed: int, *, quick: bool) -> DemoCase:
    try:
        from rlsparse_store.demo.case import DemoSettings, make_case  # noqa: PLC0415 - loads torch
    except ImportError as error:
        msg = (
            f"the demo trains a model and needs {error.name or 'torch'}: {install_command('demo')}"
        )
        raise MissingDependencyError(msg) from error
    settings = DemoSettings.quick() if quick else DemoSettings.full()
    folder.mkdir(parents=True, exist_ok=True)
    return make_case(folder, dataclasses.replace(settings, seed=seed), click.echo)


def _print_command(command: str) -> None:
    click.echo(f"$ {command}")


def _print_rewards(case: DemoCase) -> None:
    click.echo(
        f"\nReward on the same {case.prompts:,} held-out sums, answered greedily:"
        f"\n  before  {case.reward_before:7.2%}  ± {case.reward_before_se:.2%} (standard error)"
        f"\n  after   {case.reward_after:7.2%}  ± {case.reward_after_se:.2%}"
        f"\n  gain    {case.reward_gain:+7.2%}  ± {case.reward_gain_se:.2%} (paired)"
        f"\nGRPO: {case.steps} steps at learning rate {case.learning_rate:g}, float32 masters, "
        f"checkpoints in bfloat16.\n"
    )


def _require_equal_files(tuned: Path, rebuilt: Path) -> None:
    for path in tuned.glob("model*"):
        if path.read_bytes() != (rebuilt / path.name).read_bytes():
            msg = "the rebuilt file differs from the tuned one"
            raise ResultMismatchError(msg, file=rebuilt / path.name)


def _print_larger_cases(case: DemoCase, report: DeltaReport) -> None:
    click.echo("\nSizes (at equal steps, a tiny model changes more densely than a large one)")
    rows: list[tuple[str, int, float, int, int]] = [
        ("this run", case.parameters, report.density, report.tuned_bytes, report.delta_bytes)
    ]
    rows += _MEASURED
    print_table(
        ["case", "weights", "changed", "checkpoint", "delta", "ratio"],
        [
            [
                name,
                f"{weights:,}",
                format_percent(density),
                format_bytes(full),
                format_bytes(delta),
                f"{full / delta:.0f} : 1",
            ]
            for name, weights, density, full, delta in rows
        ],
    )


def _print_result(case: DemoCase, report: DeltaReport) -> None:
    smaller = report.tuned_bytes / report.delta_bytes
    click.echo(
        f"\nThe files are in {printable(str(case.base.parent))}/; --verbose prints more."
        f"\n  reward      {case.reward_before:.1%} before GRPO, {case.reward_after:.1%} after"
        f"\n  changed     {report.changed:,} of {report.elements:,} weights "
        f"({format_percent(report.density)})"
        f"\n  checkpoint  {format_bytes(report.tuned_bytes)}"
        f"\n  delta       {format_bytes(report.delta_bytes)}: {smaller:.0f} times smaller"
        f"\n  rebuilt     byte for byte, and verified"
        f"\n  took        {case.seconds:.0f} s, nearly all of it training"
    )
