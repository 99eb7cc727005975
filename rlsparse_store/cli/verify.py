"""``rlsparse verify``."""

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
from rlsparse_store.delta.resolve import as_repo_id
from rlsparse_store.delta.run import is_run
from rlsparse_store.delta.verify import verify_delta
from rlsparse_store.delta.verify_run import verify_run

__all__ = ["verify_command"]

_OF_ONE_DELTA = ("revision", "tuned_revision")


@click.command("verify")
@click.argument("delta")
@base_option
@click.option("--tuned", "-t", metavar="TUNED", help="The tuned checkpoint to compare with.")
@subfolder_option
@threads_option
@max_tuned_bytes_option
@hub_options(revision="DELTA", base_revision="BASE", tuned_revision="TUNED")
@json_option
@quiet_option
def verify_command(
    delta: str,
    tuned: str | None,
    subfolder: str,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of verify_delta, by their names
) -> None:
    """Verify DELTA, or each entry of a run: its own bytes, and its base and tuned checkpoint.

    With --base, checks all of the base and that every tensor decodes to what was encoded. With
    --tuned, checks that DELTA stores this checkpoint. The exit code is 3 on a mismatch.
    """
    if not subfolder and as_repo_id(delta, options["revision"]) is None and is_run(delta):
        if tuned is not None:
            msg = "--tuned needs one delta: add --subfolder NAME"
            raise click.UsageError(msg)
        of_each = {name: value for name, value in options.items() if name not in _OF_ONE_DELTA}
        with progress_bar("verify", quiet=quiet) as progress:
            run = verify_run(delta, progress=progress, **of_each)
        if as_json:
            print_json(run.as_json())
        else:
            decoded = "" if options["base"] else ": the deltas' own files"
            click.echo(f"ok: {len(run.entries):,} entries{decoded}")
        return
    with progress_bar("verify", quiet=quiet) as progress:
        report = verify_delta(delta, tuned=tuned, subfolder=subfolder, progress=progress, **options)
    if as_json:
        print_json(asdict(report))
        return
    click.echo("ok" if report.decoded else "ok: the delta's own files")
    click.echo(f"  stored bytes: match their checksums, {report.chunks:,} chunks")
    click.echo(f"  base: {'matches its digest' if report.base_checked else 'not given (--base)'}")
    decoded = "decode to what was encoded" if report.decoded else "not decoded (--base)"
    click.echo(f"  tensors: {decoded}")
    if report.tuned_checked:
        click.echo("  tuned checkpoint: matches the delta")
    if report.cast:
        click.echo(f"  lossy: the checkpoint was rounded to {report.cast} before encoding")
