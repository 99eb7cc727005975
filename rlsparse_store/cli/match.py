"""``rlsparse match``."""

from __future__ import annotations

from typing import Any

import click

from rlsparse_store.analysis.match import MATCH_TOLERANCES, match_checkpoints
from rlsparse_store.cli.options import hub_options, json_option, quiet_option, threads_option
from rlsparse_store.cli.output import print_json, print_table, progress_bar
from rlsparse_store.delta.units import format_percent
from rlsparse_store.format.names import printable

__all__ = ["match_command"]


@click.command("match")
@click.argument("full")
@click.argument("sub")
@click.option("--base", "-b", required=True, metavar="BASE", help="The base of both.")
@threads_option
@hub_options(full_revision="FULL", sub_revision="SUB", base_revision="BASE")
@json_option
@quiet_option
def match_command(
    full: str,
    sub: str,
    base: str,
    threads: int | None,
    as_json: bool,  # noqa: FBT001 - click passes every parameter by name
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Compare FULL, tuned in full, with SUB, tuned on a subnetwork: deltas or checkpoints.

    The base itself is the control: where little changed, it matches FULL, too.
    """
    with progress_bar("match", quiet=quiet) as progress:
        report = match_checkpoints(full, sub, base=base, threads=threads, progress=progress, **hub)
    if as_json:
        print_json(report.as_json())
        return
    for name in report.unmatched[:10]:
        click.echo(
            f"  not compared: {printable(name, 80)}, which differs in dtype or shape, or is missing"
        )
    names = {"bits": "equal bits", "1e-05": "within 1e-5", "0.0001": "within 1e-4"}
    parts = (
        ("everything", report.everything),
        ("what full training changed", report.mask),
        ("the rest", report.complement),
    )
    headings = ["words", *(names[tolerance] for tolerance in MATCH_TOLERANCES)]
    rows = []
    for title, shares in parts:
        for who, found in (
            ("full and sub", shares.full_and_sub),
            ("base and full", shares.base_and_full),
        ):
            cells = [_close(found[tolerance]) for tolerance in MATCH_TOLERANCES]
            rows.append([f"{title}: {who}", f"{shares.words:,}", *cells])
    print_table(["", *headings], rows)
    click.echo(f"  {report.sub_outside:,} words outside the mask were changed by SUB only")


def _close(share: float | None) -> str:
    """A percentage with enough digits to tell it from 100 %."""
    return "" if share is None else f"{100 * share:.4f} %" if share < 1 else format_percent(1.0)
