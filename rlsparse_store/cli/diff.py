"""``rlsparse diff``."""

from __future__ import annotations

from dataclasses import asdict

import click

from rlsparse_store.analysis.run_diff import diff_entries
from rlsparse_store.cli.encode import print_names
from rlsparse_store.cli.options import base_option, json_option, quiet_option, threads_option
from rlsparse_store.cli.output import print_json, progress_bar
from rlsparse_store.delta.units import format_percent

__all__ = ["diff_command"]


@click.command("diff")
@click.argument("run")
@click.argument("a")
@click.argument("b")
@base_option
@threads_option
@json_option
@quiet_option
def diff_command(
    run: str,
    a: str,
    b: str,
    base: str | None,
    threads: int | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
) -> None:
    """Compare the entries A and B of a local RUN.

    The deltas show which tensors differ. With --base, the differing words are counted.
    """
    with progress_bar("diff", quiet=quiet) as progress:
        report = diff_entries(run, a, b, base=base, threads=threads, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"  {report.equal:,} tensors are equal, {len(report.differing):,} differ")
    print_names("differing", report.differing)
    print_names(f"only in {report.a}", report.only_a)
    print_names(f"only in {report.b}", report.only_b)
    if report.words is not None and report.moved is not None:
        share = format_percent(report.moved / max(1, report.words))
        click.echo(f"  {report.moved:,} of {report.words:,} words differ ({share})")
