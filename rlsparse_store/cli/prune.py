"""``rlsparse prune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from rlsparse_store.cli.options import json_option
from rlsparse_store.cli.output import print_json
from rlsparse_store.delta.prune import GRACE_SECONDS, prune_run
from rlsparse_store.delta.units import format_bytes
from rlsparse_store.format.names import printable

__all__ = ["prune_command"]

_NOT_NEGATIVE = click.FloatRange(min=0)


@click.command("prune")
@click.argument("run")
@click.option("--keep-last", type=click.IntRange(min=0), metavar="K", help="Keep the last K.")
@click.option(
    "--keep-every", type=click.IntRange(min=1), metavar="N", help="Keep steps divisible by N."
)
@click.option("--keep-best", metavar="METRIC", help="Keep the entry with the best METRIC.")
@click.option(
    "--max/--min", "is_max", default=True, help="What is best: the largest, or the smallest."
)
@click.option("--pin", multiple=True, metavar="NAME", help="Keep this entry from now on.")
@click.option("--unpin", multiple=True, metavar="NAME", help="Remove a pin.")
@click.option(
    "--grace",
    "grace_seconds",
    type=_NOT_NEGATIVE,
    default=GRACE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time between unlisting an entry and removing its files.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@json_option
def prune_command(
    run: str,
    is_max: bool,  # noqa: FBT001 - click passes every parameter by name
    as_json: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of prune_run, by their names
) -> None:
    """Remove the entries of RUN that no rule keeps.

    Entries are unlisted first: readers of the run no longer see them. The next prune after
    the grace period removes their files. Pinned entries stay. Without a --keep rule nothing is
    unlisted.

    Training cannot be resumed from a delta: keep a full checkpoint for that.
    """
    report = prune_run(run, best="max" if is_max else "min", **options)
    if as_json:
        print_json(asdict(report))
        return
    would = "would be " if report.dry_run else ""
    click.echo(f"kept {len(report.kept)} of {len(report.kept) + len(report.unlisted)} entries")
    for folder in report.unlisted:
        click.echo(f"  {would}unlisted: {printable(folder)}")
    for folder in report.removed:
        click.echo(f"  {would}removed: {printable(folder)}")
    if report.unlisted:
        click.echo(
            f"  {format_bytes(report.unlisted_bytes)} {would}freed by the first prune after the "
            f"grace period"
        )
