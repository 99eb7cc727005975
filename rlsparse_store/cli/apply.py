"""``rlsparse apply``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from rlsparse_store.cli.options import (
    base_option,
    hub_options,
    json_option,
    max_tuned_bytes_option,
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
@max_tuned_bytes_option
@hub_options(revision="DELTA", base_revision="BASE")
@json_option
@quiet_option
def apply_command(
    delta: str,
    out: str,
    base: str | None,
    subfolder: str,
    threads: int | None,
    max_tuned_bytes: int | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Rebuild the tuned checkpoint that DELTA stores.

    DELTA is a folder, or ORG/NAME[@REVISION] on the Hub. Without --base, the base is the commit
    that DELTA names, else a snapshot in the Hub's cache with its content.

    Tensors come back bit for bit and files byte for byte, and everything is checked.
    """
    with progress_bar("apply", quiet=quiet) as progress:
        report = apply_delta(
            delta,
            out,
            base=base,
            subfolder=subfolder,
            threads=threads,
            max_tuned_bytes=max_tuned_bytes,
            progress=progress,
            **hub,
        )
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"wrote {printable(out)}")
    click.echo(
        f"  {report.tensors:,} tensors, {format_bytes(report.tensor_bytes)}, in "
        f"{len(report.files)} file{'s' if len(report.files) != 1 else ''}, all verified"
    )
    if report.cast:
        click.echo(f"  lossy: the checkpoint was rounded to {report.cast} before encoding")
