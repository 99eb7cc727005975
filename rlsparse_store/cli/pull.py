"""``rlsparse pull``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from rlsparse_store.cli.options import hub_options, json_option, quiet_option, subfolder_option
from rlsparse_store.cli.output import print_json, progress_bar
from rlsparse_store.delta.units import format_bytes
from rlsparse_store.format.names import printable
from rlsparse_store.publish.pull import pull_delta

__all__ = ["pull_command"]


@click.command("pull")
@click.argument("repo")
@click.option(
    "--out", "-o", metavar="OUT", help="Folder to write.  [default: the repository's name]"
)
@subfolder_option
@click.option(
    "--only",
    multiple=True,
    metavar="NAME|GLOB|last|best:METRIC",
    help="Pull only these entries of a run. May be given several times.",
)
@click.option(
    "--max/--min", "is_max", default=True, help="What is best: the largest, or the smallest."
)
@click.option(
    "--with-base", is_flag=True, help="Also download the base, into the cache of the Hub's files."
)
@hub_options(revision="REPO")
@json_option
@quiet_option
def pull_command(
    repo: str,
    out: str | None,
    subfolder: str,
    is_max: bool,  # noqa: FBT001 - click passes every parameter by name
    as_json: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of pull_delta, by their names
) -> None:
    """Download the delta or run in REPO (ORG/NAME[@REVISION]) into a folder.

    Every file is compared with the Hub's checksums and the delta's own. The base is not needed.
    Entries of a run are added to the run in OUT, and those that it has are not downloaded again.
    """
    name = (subfolder.rstrip("/") or repo.removeprefix("hf://").partition("@")[0]).rpartition("/")[
        2
    ]
    out = name if out is None else out
    with progress_bar("pull", quiet=quiet):
        report = pull_delta(
            repo, out, subfolder=subfolder, best="max" if is_max else "min", **options
        )
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"wrote {printable(out)}, from {printable(report.repo)} at commit {report.revision}")
    new = len(report.deltas) - len(report.held)
    what = "a delta" if report.deltas == [""] else f"{new} of {len(report.deltas)} deltas"
    click.echo(f"  {what}: {report.files} files, {format_bytes(report.nbytes)}, all verified")
    if report.held:
        click.echo(f"  {len(report.held)} deltas were pulled before")
    if report.base is not None:
        click.echo(f"  base: {printable(report.base, 400)}, verified")
