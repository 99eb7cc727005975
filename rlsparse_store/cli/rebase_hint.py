"""``rlsparse rebase-hint``."""

from __future__ import annotations

from typing import Any

import click

from rlsparse_store.cli.options import hub_options, json_option, quiet_option
from rlsparse_store.cli.output import print_json, progress_bar
from rlsparse_store.delta.rebase_hint import rebase_hint
from rlsparse_store.format.names import printable

__all__ = ["rebase_hint_command"]


@click.command("rebase-hint")
@click.argument("delta", metavar="DELTA|RUN")
@click.option(
    "--base",
    "-b",
    required=True,
    metavar="ORG/NAME[@REVISION]",
    help="Where the base is on the Hub now.",
)
@hub_options(base_revision="the base")
@json_option
@quiet_option
def rebase_hint_command(
    delta: str,
    base: str,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Record where the base of DELTA, or of every entry of RUN, is on the Hub.

    Use it if the base was uploaded again or its history was squashed. The base is downloaded and
    its whole content compared: with other content, nothing is written. Chunks and digests stay.

    Of a delta on the Hub: pull it, run this command, push it.
    """
    with progress_bar("rebase-hint", quiet=quiet):
        report = rebase_hint(delta, base, **hub)
    if as_json:
        print_json(report.as_json())
        return
    count = len(report.rewritten)
    what = f"{count} of {count + len(report.unchanged)} deltas"
    if "" in [*report.rewritten, *report.unchanged]:
        what = "the delta" if count else "nothing"
    place = printable(f"{report.base_repo}@{report.base_revision}")
    click.echo(f"rewrote {what}: the base is {place}, content compared")
