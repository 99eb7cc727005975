"""``rlsparse series``."""

from __future__ import annotations

from typing import Any

import click

from rlsparse_store.analysis.series import measure_series
from rlsparse_store.cli.options import (
    base_option,
    hub_options,
    json_option,
    quiet_option,
    threads_option,
)
from rlsparse_store.cli.output import print_json, print_table, progress_bar
from rlsparse_store.delta.units import format_percent
from rlsparse_store.format.names import printable

__all__ = ["series_command"]


@click.command("series")
@click.argument("deltas", nargs=-1, required=True, metavar="D1 D2... | RUN")
@base_option
@threads_option
@hub_options(revision="RUN", base_revision="BASE")
@json_option
@quiet_option
def series_command(
    deltas: tuple[str, ...],
    base: str | None,
    threads: int | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Follow a training run over its deltas: when weights changed, and which changed back.

    Deltas are taken in the given order; those of a RUN in natural order of their names.
    """
    with progress_bar("series", quiet=quiet) as progress:
        report = measure_series(deltas, base=base, threads=threads, progress=progress, **hub)
    if as_json:
        print_json(report.as_json())
        return
    click.echo(f"  {report.words:,} words in all deltas")
    for name in report.unmatched[:10]:
        click.echo(f"  not compared: {printable(name, 80)}, which some deltas lack")
    print_table(
        ["delta", "from base", "density", "from previous", "changed before"],
        [
            [
                printable(step.name, 40),
                f"{step.changed:,}",
                format_percent(step.density),
                f"{step.moved:,}",
                "" if step.locality is None else format_percent(step.locality),
            ]
            for step in report.steps
        ],
    )
    click.echo("\nEqual words by distance between checkpoints, mean")
    print_table(
        ["distance", "equal"],
        [[distance, format_percent(share)] for distance, share in report.sparsity.items()],
    )
    outside = (
        "" if report.outside_final is None else f", {format_percent(report.outside_final)} of them"
    )
    click.echo(
        f"\n  {report.ever_changed:,} words ever changed; {report.finally_changed:,} differ at the "
        f"end, {report.cancelled:,} changed back{outside}"
    )
