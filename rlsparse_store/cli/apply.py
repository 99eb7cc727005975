"""``rlsparse apply``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from rlsparse_store.delta.run import find_entry
from rlsparse_store.delta.units import format_bytes
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from rlsparse_store.delta.apply import ApplyReport

__all__ = ["apply_command"]


@click.command("apply")
@click.argument("delta")
@click.option("--out", "-o", required=True, metavar="OUT", help="Folder to write.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Of a run: rebuild this entry, in a folder of its name within OUT. May be repeated.",
)
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
    only: tuple[str, ...],
    subfolder: str,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of apply_delta, by their names
) -> None:
    """Rebuild the tuned checkpoint that DELTA stores, or those of a run with --only.

    DELTA is a folder, a URL (s3://…), or ORG/NAME[@REVISION] on the Hub. Without --base, the base
    is the commit that DELTA names, else a snapshot in the Hub's cache with its content.

    Everything is checked. Tensors come back bit for bit, and files byte for byte.
    """
    if only:
        if subfolder:
            msg = "--only and --subfolder exclude each other"
            raise click.UsageError(msg)
        _apply_entries(delta, out, only, options, as_json=as_json, quiet=quiet)
        return
    with progress_bar("apply", quiet=quiet) as progress:
        report = apply_delta(delta, out, subfolder=subfolder, progress=progress, **options)
    if as_json:
        print_json(asdict(report))
    else:
        _print(out, report)


def _apply_entries(
    run: str,
    out: str,
    names: tuple[str, ...],
    options: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Rebuild entries of a run. All are found before the first is rebuilt."""
    reports = {}
    entries = dict(find_entry(run, name) for name in names)
    for folder, delta in entries.items():
        with progress_bar(f"apply {folder}", quiet=quiet) as progress:
            place = Path(out, folder)
            reports[folder] = apply_delta(delta, place, progress=progress, **options)
        if not as_json:
            _print(str(place), reports[folder])
    if as_json:
        print_json({"entries": {name: asdict(report) for name, report in reports.items()}})


def _print(out: str, report: ApplyReport) -> None:
    click.echo(f"wrote {printable(out)}")
    click.echo(
        f"  {report.tensors:,} tensors, {format_bytes(report.tensor_bytes)}, in "
        f"{len(report.files)} file{'s' if len(report.files) != 1 else ''}, all verified"
    )
    if report.cast:
        click.echo(f"  lossy: the checkpoint was rounded to {report.cast} before encoding")
