"""``rlsparse apply``."""

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
from rlsparse_store.delta.apply import apply_delta
from rlsparse_store.delta.units import format_bytes
from rlsparse_store.format.names import printable

__all__ = ["apply_command"]


@click.command("apply")
@click.argument("delta")
@click.option("--out", "-o", required=True, metavar="OUT", help="Folder to write.")
@base_option
@subfolder_option
@threads_option
@json_option
@quiet_option
def apply_command(
    delta: str,
    out: str,
    base: str | None,
    subfolder: str,
    threads: int | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
) -> None:
    """Rebuild the tuned checkpoint that DELTA stores.

    DELTA is a folder, or ORG/NAME[@REVISION] on the Hub. Without --base, the commit that it names
    is used, or a snapshot in the Hub's cache with its content.

    Its tensors come back bit for bit and its files byte for byte; everything is checked.
    """
    with progress_bar("apply", quiet=quiet) as progress:
        report = apply_delta(
            delta, out, base=base, subfolder=subfolder, threads=threads, progress=progress
        )
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"wrote {printable(out)}")
    click.echo(
        f"  {report.tensors:,} tensors, {format_bytes(report.tensor_bytes)}, in "
        f"{len(report.files)} file{'s' if len(report.files) != 1 else ''}, all checked"
    )
    if report.cast:
        click.echo(f"  the delta is lossy: its checkpoint had been rounded to {report.cast}")
