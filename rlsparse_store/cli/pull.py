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
@hub_options(revision="REPO")
@json_option
@quiet_option
def pull_command(
    repo: str,
    out: str | None,
    subfolder: str,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Download the delta or run in REPO (ORG/NAME[@REVISION]) into a folder.

    Every file is compared with the Hub's checksums and the delta's own. The base is not needed.
    """
    name = (subfolder.rstrip("/") or repo.removeprefix("hf://").partition("@")[0]).rpartition("/")[
        2
    ]
    out = name if out is None else out
    with progress_bar("pull", quiet=quiet):
        report = pull_delta(repo, out, subfolder=subfolder, **hub)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"wrote {printable(out)}, from {printable(report.repo)} at commit {report.revision}")
    what = "a delta" if report.deltas == [""] else f"{len(report.deltas)} deltas"
    click.echo(f"  {what}: {report.files} files, {format_bytes(report.nbytes)}, all verified")
