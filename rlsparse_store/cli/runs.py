"""``rlsparse runs``."""

from __future__ import annotations

from dataclasses import asdict

import click

from rlsparse_store.cli.options import json_option
from rlsparse_store.cli.output import print_json
from rlsparse_store.delta.run import repair_run
from rlsparse_store.format.names import printable

__all__ = ["runs_command"]


@click.group("runs")
def runs_command() -> None:
    """Maintain runs."""


@runs_command.command("repair")
@click.argument("run")
@json_option
def repair_command(run: str, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """Write the index of RUN anew from its entries. Removes nothing."""
    report = repair_run(run)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"indexed {printable(run)}: {len(report.entries)} in all")
    if report.index_error is not None:
        click.echo(f"  the index {printable(report.index_error)}")
    for label in ("added", "changed", "dropped"):
        for folder in getattr(report, label):
            click.echo(f"  {label}: {printable(folder)}")
