"""``rlsparse compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rlsparse_store.analysis.overlap import compare_deltas
from rlsparse_store.cli.options import (
    base_option,
    hub_options,
    json_option,
    quiet_option,
    threads_option,
)
from rlsparse_store.cli.output import print_json, print_table, progress_bar
from rlsparse_store.delta.units import format_percent
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from rlsparse_store.analysis.overlap import CompareReport, Overlap

__all__ = ["compare_command"]


@click.command("compare")
@click.argument("deltas", nargs=-1, required=True, metavar="A B [C...] | RUN")
@base_option
@click.option("--groups", is_flag=True, help="Also print layers and kinds of module.")
@threads_option
@hub_options(revision="RUN", base_revision="BASE")
@json_option
@quiet_option
def compare_command(
    deltas: tuple[str, ...],
    base: str | None,
    groups: bool,  # noqa: FBT001 - click passes every parameter by name
    threads: int | None,
    as_json: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
    **hub: Any,  # noqa: ANN401 - the options of the Hub, by their names
) -> None:
    """Compare the updates of several deltas of one base with chance.

    Chance is matched on the overall density, on the density of each tensor, and on that of each
    tensor and magnitude of the base. The last is the strictest: small weights change in any run.
    """
    with progress_bar("compare", quiet=quiet) as progress:
        report = compare_deltas(deltas, base=base, threads=threads, progress=progress, **hub)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report, groups=groups)


def _print(report: CompareReport, *, groups: bool) -> None:
    click.echo(f"  {report.words:,} words in all deltas")
    for name in report.unmatched[:10]:
        click.echo(f"  not compared: {printable(name, 80)}, which some deltas lack")
    rows = [
        [printable(name, 40), f"{changed:,}", format_percent(changed / max(1, report.words))]
        for name, changed in zip(report.deltas, report.changed, strict=True)
    ]
    print_table(["delta", "changed", "density"], rows)
    click.echo("\nPairs: overlap of the words that A and B changed")
    print_table(
        ["A, B", "both", "of A", "of B", "Jaccard", "same sign", "same value", "cosine"],
        [
            [
                f"{printable(pair.a, 30)}, {printable(pair.b, 30)}",
                *_shares(pair.overall),
                "" if pair.overall.cosine is None else f"{pair.overall.cosine:.3f}",
            ]
            for pair in report.pairs
        ],
    )
    click.echo("\nOverlap ÷ chance, with chance matched on")
    print_table(
        ["A, B", "overall density", "tensor", "tensor and magnitude"],
        [
            [f"{printable(pair.a, 30)}, {printable(pair.b, 30)}", *_lifts(pair.overall)]
            for pair in report.pairs
        ],
    )
    click.echo("\nWords by the number of deltas that changed them")
    print_table(
        ["deltas", "words", "share"],
        [
            [f"{times}", f"{words:,}", format_percent(words / max(1, report.words))]
            for times, words in enumerate(report.consensus)
        ],
    )
    for pair in report.pairs if groups else []:
        click.echo(f"\n{printable(pair.a, 40)} and {printable(pair.b, 40)}")
        print_table(
            ["group", "both", "of A", "of B", "Jaccard", "same sign", "same value", "lift"],
            [
                [printable(group.name, 40), *_shares(group), _times(group.lift["magnitude"])]
                for group in [*pair.layers, *pair.modules]
            ],
        )


def _shares(overlap: Overlap) -> list[str]:
    shares = (overlap.one_sided_a, overlap.one_sided_b, overlap.jaccard)
    agreement = (overlap.same_sign, overlap.same_value)
    return [
        f"{overlap.both:,}",
        *("" if s is None else format_percent(s) for s in shares + agreement),
    ]


def _lifts(overlap: Overlap) -> list[str]:
    return [_times(lift) for lift in overlap.lift.values()]


def _times(lift: float | None) -> str:
    return "" if lift is None else f"{lift:.3g} x"
