"""Tables of how an update changed values."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Final

import click

from rlsparse_store.cli.output import print_table
from rlsparse_store.delta.units import format_bits, format_bytes, format_percent
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from rlsparse_store.analysis.value_report import ValueReport
    from rlsparse_store.delta.report import DeltaReport

__all__ = ["cell", "print_csv", "print_values"]

SHOWN_GROUPS = 40
"""Groups printed per kind; JSON has all."""

_FORMULA: Final = ("=", "+", "-", "@")


def print_values(values: ValueReport, preset: str) -> None:
    """Print totals, cautions, tolerances, steps, magnitudes and encodings."""
    _print_head(values, preset)
    for caution in values.cautions:
        click.echo(f"  caution: {caution}")
    _print_unmatched(values)
    click.echo("\nUnchanged words, by tolerance")
    rows = [["equal bits", format_percent(1 - values.density)]]
    rows += [
        [f"|difference| <= {t}", format_percent(s)] for t, s in values.unchanged_within.items()
    ]
    rows.append(["|difference| <= 0.001 of the larger", format_percent(values.unchanged_relative)])
    print_table(["test", "unchanged"], rows)
    if values.changed:
        _print_changes(values)
    _print_groups(values)
    click.echo("\nSize of the changes")
    print_table(
        ["encoding", "size", "bits/changed"],
        [
            [
                f"{e.name} ({e.used_by})",
                format_bytes(e.nbytes),
                "" if e.bits_per_changed is None else format_bits(e.bits_per_changed),
            ]
            for e in values.encodings
        ],
    )
    if values.top_rows:
        click.echo("\nRows with the most changes")
        print_table(
            ["tensor", "row", "changed", "of"],
            [
                [printable(r.tensor, 60), f"{r.row:,}", f"{r.changed:,}", f"{r.words:,}"]
                for r in values.top_rows
            ],
        )
    if values.ranks:
        click.echo("\nRanks of sampled updates")
        print_table(
            ["tensor", "shape", "rank", "of the shorter side", "99 % energy", "stable"],
            [
                [
                    printable(r.name, 60),
                    " x ".join(map(str, r.shape)),
                    f"{r.rank:,}",
                    format_percent(r.share),
                    f"{r.energy_rank:,}",
                    f"{r.stable_rank:.3g}",
                ]
                for r in values.ranks
            ],
        )


def _print_head(values: ValueReport, preset: str) -> None:
    words = f"{values.words:,} words of {values.tensors_compared:,} tensors"
    if preset == "mukherjee":
        click.echo(
            f"  sparsity {format_percent(values.unchanged_within['1e-05'])} at 1e-5 of {words}; "
            f"mean density of tensors, unweighted, {format_percent(values.mean_density)}"
        )
    else:
        click.echo(
            f"  {values.changed:,} of {words} changed bits ({format_percent(values.density)}); "
            f"mean of tensors, unweighted, {format_percent(values.mean_density)}"
        )
    dtypes = ", ".join(f"{count:,} {code}" for code, count in values.dtypes.items())
    tied = f"; {len(values.tied):,} tied tensors count once" if values.tied else ""
    click.echo(f"  scope {values.scope}: {dtypes or 'nothing'}{tied}")
    click.echo(
        f"  unchanged tensors {format_percent(values.inactive_ratio)}, "
        f"changed rows {format_percent(values.rows_touched)}, "
        f"changed columns {format_percent(values.columns_touched)}"
    )


def _print_unmatched(values: ValueReport) -> None:
    if values.tail_words:
        click.echo(f"  not compared: {values.tail_words:,} words that only TUNED has")
    for tensor in values.unmatched[:10]:
        click.echo(
            f"  not compared: {printable(tensor.name, 60)}, {tensor.elements:,} elements, "
            f"{printable(tensor.reason, 80)}"
        )
    if len(values.unmatched) > 10:
        click.echo(f"  … and {len(values.unmatched) - 10:,} more (--json lists all)")


def _print_changes(values: ValueReport) -> None:
    click.echo("\nSteps (distance in representable values)")
    rows = [
        [label, f"{count:,}", format_percent(count / max(1, sum(values.steps)))]
        for label, count in zip(values.step_labels, values.steps, strict=True)
        if count
    ]
    print_table(["step", "words", "share"], rows)
    relative = "" if values.relative_norm is None else f", {values.relative_norm:.3g} of the base's"
    click.echo(
        f"\n  norm of the update {values.delta_norm:.4g}{relative}; mean |difference| "
        f"{values.mean_delta:.3g}, RMS {values.rms_delta:.3g}, largest {values.largest_delta:.3g}"
    )
    click.echo(
        f"  {values.sign_flips:,} signs and {values.exponent_moves:,} exponents differ; "
        f"{values.not_numbers:,} changed to NaN, {values.negative_zeros:,} to -0"
    )
    casts = ", ".join(
        f"{code} {format_percent(share)}" for code, share in values.cast_density.items()
    )
    click.echo(f"  density after a cast of both sides: {casts}")
    table = values.exponents
    if table is not None:
        click.echo("\nBy the base's magnitude")
        rows = [
            [f"2^{exponent}", f"{n:,}", f"{k:,}", format_percent(k / n)]
            for exponent, n, k in zip(table.exponents, table.words, table.changed, strict=True)
            if n > values.words / 2000
        ]
        print_table(["from", "words", "changed", "P(change)"], rows)
        if table.half_magnitude is not None:
            click.echo(f"  half of the weights of magnitude ≈ {table.half_magnitude:.3g} changed")


def _print_groups(values: ValueReport) -> None:
    kinds = (
        ("By layer", values.layers),
        ("By kind of module", values.modules),
        ("By kind of block", values.blocks),
        ("By expert", values.experts),
    )
    for title, groups in kinds:
        if not groups:
            continue
        click.echo(f"\n{title}")
        print_table(
            ["group", "tensors", "words", "changed", "density", "unweighted", "unchanged"],
            [
                [
                    printable(g.name, 40),
                    f"{g.tensors:,}",
                    f"{g.words:,}",
                    f"{g.changed:,}",
                    format_percent(g.density),
                    format_percent(g.mean_density),
                    f"{g.inactive:,}",
                ]
                for g in groups[:SHOWN_GROUPS]
            ],
        )
        if len(groups) > SHOWN_GROUPS:
            click.echo(f"  … and {len(groups) - SHOWN_GROUPS:,} more (--json lists all)")


def print_csv(report: DeltaReport, values: ValueReport | None) -> None:
    """Print comma-separated values: a line of headings, then a line per tensor."""
    headings = ["name", "kind", "dtype", "shape", "elements", "changed", "density", "stored_bytes"]
    measured = {} if values is None else {t.name: t for t in values.tensors}
    more = ["delta_norm", "base_norm", "largest_delta", "rows_touched", "rows"]
    more += ["columns_touched", "columns"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*headings, *(more if values is not None else [])])
    for t in report.tensors:
        row: list[object] = [
            *(cell(t.name), t.kind, t.dtype, "x".join(map(str, t.shape)), t.elements),
            *(t.changed, t.density, t.stored_bytes),
        ]
        if values is not None:
            found = measured.get(t.name)
            row += ["" if found is None else _value(getattr(found, name)) for name in more]
        writer.writerow(row)


def _value(value: object) -> object:
    return "" if value is None else value


def cell(text: str) -> str:
    """A foreign name that a spreadsheet does not take for a formula."""
    text = printable(text, 1000)
    return f"'{text}" if text.startswith(_FORMULA) else text
