"""``rlsparse inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rlsparse_store.cli.encode import print_encoded, print_run
from rlsparse_store.cli.options import json_option, quiet_option, subfolder_option, threads_option
from rlsparse_store.cli.output import print_json, print_table, progress_bar
from rlsparse_store.delta import (
    STEP_LABELS,
    EncodeReport,
    inspect_delta,
    inspect_run,
    is_run,
    measure_pair,
    percent,
    size,
)
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from rlsparse_store.delta import DeltaReport, Group

__all__ = ["inspect_command", "print_report"]

SHOWN_TENSORS = 20
"""Tensors listed unless all are asked for: those with the most changes."""


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, metavar="DELTA | RUN | BASE TUNED")
@click.option("--all", "show_all", is_flag=True, help="List every tensor, in order of names.")
@subfolder_option
@click.option("--cast", type=click.Choice(["bf16"]), help="For a pair: as for encode.")
@click.option("--keep-dtype", is_flag=True, help="For a pair: as for encode.")
@threads_option
@json_option
@quiet_option
def inspect_command(
    paths: tuple[str, ...],
    show_all: bool,  # noqa: FBT001 - click passes every parameter by name
    subfolder: str,
    cast: str | None,
    keep_dtype: bool,  # noqa: FBT001
    threads: int | None,
    as_json: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
) -> None:
    """Show how sparse an update is: of a DELTA, of each delta of a RUN, or of a pair BASE TUNED.

    DELTA and RUN are folders, or ORG/NAME[@REVISION] on the Hub. A delta is read from its index
    alone: no base is needed and nothing is decoded. A pair is
    encoded without writing anything, so its sizes are those that encode would give.
    """
    report: DeltaReport
    if len(paths) == 1 and not subfolder and is_run(paths[0]):
        run = inspect_run(paths[0])
        if as_json:
            print_json(run.as_json())
        else:
            print_run(run)
        return
    if len(paths) == 1:
        report = inspect_delta(paths[0], subfolder=subfolder)
    elif len(paths) == 2:
        with progress_bar("inspect", quiet=quiet) as progress:
            report = measure_pair(
                *paths, cast=cast, keep_dtype=keep_dtype, threads=threads, progress=progress
            )
    else:
        msg = "give one DELTA or RUN, or BASE and TUNED"
        raise click.UsageError(msg)
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report, show_all=show_all)


def print_report(report: DeltaReport, *, show_all: bool = False) -> None:
    """Print totals, the step histogram, and densities by layer, module and tensor."""
    if isinstance(report, EncodeReport):
        print_encoded(report)
    else:
        _print_totals(report)
    if report.changed:
        click.echo("\nSteps (representable values moved)")
        rows = [
            [label, f"{count:,}", percent(count / report.changed)]
            for label, count in zip(STEP_LABELS, report.steps, strict=True)
        ]
        print_table(["step", "weights", "share"], [*rows[3::-1], *rows[4:]])
    _print_groups("By layer", "layer", report.layers)
    _print_groups("By kind of module", "module", report.modules)
    _print_tensors(report, show_all=show_all)


def _print_totals(report: DeltaReport) -> None:
    click.echo(
        f"  format {report.format}, base {report.base_digest[:16]}…, "
        f"tuned {report.tuned_digest[:16]}…"
    )
    if report.base_repo:
        revision = shown(report.base_revision or "unknown")
        click.echo(f"  base: {shown(report.base_repo)} at commit {revision}")
    click.echo(
        f"  {report.changed:,} of {report.elements:,} weights changed ({percent(report.density)})"
    )
    bits = report.bits_per_changed
    click.echo(
        f"  {size(report.tuned_bytes)} of tensors in {size(report.delta_bytes)}"
        + ("" if bits is None else f"; {bits:.3g} bits per changed weight")
    )
    if report.cast:
        click.echo(f"  lossy: the checkpoint was rounded to {shown(report.cast)} before")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.items() if count)
    click.echo(
        f"  tensors: {kinds or 'none'}"
        + (f"; {len(report.removed):,} of the base removed" if report.removed else "")
    )


def _print_groups(title: str, heading: str, groups: list[Group]) -> None:
    click.echo(f"\n{title}")
    print_table(
        [heading, "tensors", "weights", "changed", "density"],
        [
            [
                shown(g.name, 40),
                f"{g.tensors:,}",
                f"{g.elements:,}",
                f"{g.changed:,}",
                percent(g.density),
            ]
            for g in groups
        ],
    )


def _print_tensors(report: DeltaReport, *, show_all: bool) -> None:
    tensors = report.tensors
    click.echo("\nBy tensor")
    if not show_all and len(tensors) > SHOWN_TENSORS:
        tensors = sorted(tensors, key=lambda t: -t.changed)[:SHOWN_TENSORS]
        click.echo(
            f"  the {SHOWN_TENSORS} with the most changes of {len(report.tensors):,} "
            "(--all lists all)"
        )
    print_table(
        ["tensor", "kind", "dtype", "shape", "changed", "density", "stored"],
        [
            [
                shown(t.name, 60),
                t.kind,
                t.dtype,
                " x ".join(map(str, t.shape)) or "scalar",
                f"{t.changed:,}",
                percent(t.density),
                size(t.stored_bytes),
            ]
            for t in tensors
        ],
    )
