"""``rlsparse verify``."""

from __future__ import annotations

from dataclasses import asdict

import click

from rlsparse_store.cli.options import (
    base_option,
    json_option,
    quiet_option,
    subfolder_option,
    threads_option,
)
from rlsparse_store.cli.output import print_json, progress_bar
from rlsparse_store.delta.verify import verify_delta

__all__ = ["verify_command"]


@click.command("verify")
@click.argument("delta")
@base_option
@click.option("--tuned", "-t", metavar="TUNED", help="A checkpoint that should be the tuned one.")
@subfolder_option
@threads_option
@json_option
@quiet_option
def verify_command(
    delta: str,
    base: str | None,
    tuned: str | None,
    subfolder: str,
    threads: int | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
) -> None:
    """Verify DELTA: its own bytes, and what else is given.

    With --base, that the base is the right one and that every tensor decodes to what was
    encoded; with --tuned, that this is the checkpoint it stores. Exit code 3 if not.
    """
    with progress_bar("verify", quiet=quiet) as progress:
        report = verify_delta(
            delta,
            base=base,
            tuned=tuned,
            subfolder=subfolder,
            threads=threads,
            progress=progress,
        )
    if as_json:
        print_json(asdict(report))
        return
    click.echo("ok" if report.decoded else "ok, as far as the delta alone can tell")
    click.echo(f"  the delta's own bytes: sound, {report.chunks:,} chunks")
    click.echo(f"  its base: {'the right one' if report.base_checked else 'not given (--base)'}")
    decoded = "every one decodes to what was encoded" if report.decoded else "not decoded (--base)"
    click.echo(f"  its tensors: {decoded}")
    if report.tuned_checked:
        click.echo("  the tuned checkpoint: the one it stores")
    if report.cast:
        click.echo(f"  it is lossy: its checkpoint had been rounded to {report.cast}")
