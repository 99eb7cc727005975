"""Tables of a run: one line per entry, or its totals."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING

import click

from rlsparse_store.cli.output import print_table
from rlsparse_store.cli.value_tables import cell
from rlsparse_store.delta.units import format_bits, format_bytes, format_percent
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from rlsparse_store.delta.run import RunReport

__all__ = ["metric_names", "print_run", "print_run_csv", "print_run_summary"]

_SHOWN_METRICS = 3
"""Metrics in the table of a run: those that most entries have."""


def metric_names(report: RunReport) -> list[str]:
    """The metrics of a run, those of the most entries first."""
    counts: dict[str, int] = {}
    for entry in report.deltas:
        for name in entry.metrics:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))


def print_run(report: RunReport) -> None:
    """Print a line per delta of a run, and the totals."""
    names = metric_names(report)
    shown = names[:_SHOWN_METRICS]
    headings = ["delta", "weights", "changed", "density", "bits/changed", "size", "smaller"]
    print_table(
        [*headings, *(printable(name, 20) for name in shown)],
        [
            [
                printable(d.folder, 60) + (" (pinned)" if d.is_pinned else ""),
                f"{d.elements:,}",
                f"{d.changed:,}",
                format_percent(d.density),
                "" if d.bits_per_changed is None else format_bits(d.bits_per_changed),
                format_bytes(d.delta_bytes),
                f"{d.tuned_bytes / d.delta_bytes:,.1f} x",
                *(f"{d.metrics[name]:.4g}" if name in d.metrics else "" for name in shown),
            ]
            for d in report.deltas
        ],
    )
    _print_total(report)
    if len(names) > len(shown):
        more = ", ".join(printable(name, 20) for name in names[len(shown) : 20])
        click.echo(f"  more metrics (--csv): {more}")


def print_run_summary(report: RunReport) -> None:
    """Print the totals of a run, and the ranges of densities and metrics."""
    click.echo(f"  {len(report.deltas):,} deltas")
    _print_total(report)
    _print_range("density", [format_percent(entry.density) for entry in report.deltas])
    for name in metric_names(report):
        values = [e.metrics[name] for e in report.deltas if name in e.metrics]
        click.echo(
            f"  {printable(name, 40)}: {values[0]:.4g} first, {values[-1]:.4g} last, "
            f"{min(values):.4g} to {max(values):.4g}"
        )


def _print_range(label: str, values: list[str]) -> None:
    click.echo(f"  {label}: {values[0]} first, {values[-1]} last")


def _print_total(report: RunReport) -> None:
    stored = sum(d.delta_bytes for d in report.deltas)
    raw = sum(d.tuned_bytes for d in report.deltas)
    click.echo(f"  total: {format_bytes(raw)} of tensors in {format_bytes(stored)}")


def print_run_csv(report: RunReport) -> None:
    """Print comma-separated values: a line of headings, then a line per entry."""
    names = metric_names(report)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    fields = ["folder", "name", "step", "elements", "changed", "density", "delta_bytes"]
    fields += ["tuned_bytes", "tuned_digest", "parent", "is_pinned"]
    writer.writerow([*fields, *map(cell, names)])
    for entry in report.deltas:
        values = [getattr(entry, field) for field in fields]
        row = [cell(v) if isinstance(v, str) else "" if v is None else v for v in values]
        writer.writerow([*row, *(entry.metrics.get(name, "") for name in names)])
