"""Files of a run's report: pictures, and one HTML page."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import click

from rlsparse_store.analysis.plots.page import write_page
from rlsparse_store.analysis.plots.run_chart import value_over_steps
from rlsparse_store.cli.report_files import save_pictures
from rlsparse_store.cli.run_tables import metric_names
from rlsparse_store.delta.units import format_bytes, format_percent
from rlsparse_store.files.output import write_new
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from pathlib import Path

    from rlsparse_store.analysis.plots.figure import ImageFormat
    from rlsparse_store.delta.run import RunEntry, RunReport

__all__ = ["write_run_pictures", "write_run_report"]

DRAWN_METRICS: Final = 6
"""Metrics that are drawn: those that most entries have."""


def write_run_pictures(report: RunReport, folder: Path) -> None:
    """Write density, size and metrics over the steps, as PNG and SVG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: The folder cannot be written, or has one of the pictures.
    """

    def draw(form: ImageFormat) -> dict[str, bytes]:
        return {name: picture for name, (_, picture) in _pictures(report, form).items()}

    save_pictures(draw, folder)


def write_run_report(place: str, report: RunReport, path: Path) -> None:
    """Write one self-contained page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: The page cannot be written, or exists.
    """
    stored = sum(entry.delta_bytes for entry in report.deltas)
    raw = sum(entry.tuned_bytes for entry in report.deltas)
    facts = [
        ("run", place),
        ("base", f"{report.deltas[0].base_digest[:16]}…"),
        ("deltas", f"{len(report.deltas):,}"),
        ("tensors", format_bytes(raw)),
        ("stored", format_bytes(stored)),
    ]
    names = metric_names(report)
    headings = ["delta", "step", "changed", "density", "size", *names]
    rows = [
        [
            entry.folder + (" (pinned)" if entry.is_pinned else ""),
            "" if entry.step is None else str(entry.step),
            f"{entry.changed:,}",
            format_percent(entry.density),
            format_bytes(entry.delta_bytes),
            *(f"{entry.metrics[n]:.4g}" if n in entry.metrics else "" for n in names),
        ]
        for entry in report.deltas
    ]
    pictures = list(_pictures(report, "png").values())
    number = len(report.deltas)
    title = f"{number:,} checkpoint{'' if number == 1 else 's'} in {format_bytes(stored)}"
    write_new(path, write_page(title, facts, [("Deltas", headings, rows)], pictures).encode())
    click.echo(f"wrote {printable(str(path))}", err=True)


def _pictures(report: RunReport, form: ImageFormat) -> dict[str, tuple[str, bytes]]:
    """Captions and pictures, by the names of their files, which no metric chooses."""
    entries = report.deltas
    drawn = {
        "density": _picture(entries, [100 * e.density for e in entries], "changed weights", form),
        "size": _picture(entries, [e.delta_bytes / 1e6 for e in entries], "size", form, unit="MB"),
    }
    for number, name in enumerate(metric_names(report)[:DRAWN_METRICS], 1):
        having = [entry for entry in entries if name in entry.metrics]
        values = [entry.metrics[name] for entry in having]
        drawn[f"metric-{number}"] = _picture(having, values, name, form, unit="")
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _picture(
    entries: list[RunEntry],
    values: list[float],
    what: str,
    form: ImageFormat,
    *,
    unit: str = "%",
) -> tuple[str, bytes] | None:
    """The caption and the picture of one value, over steps if all entries have ascending ones."""
    steps = [entry.step for entry in entries if entry.step is not None]
    ascend = len(steps) == len(entries) and all(a < b for a, b in pairwise(steps))
    places = steps if ascend else list(range(1, len(entries) + 1))
    picture = value_over_steps(places, values, what, form, unit=unit)
    return None if picture is None else (f"{printable(what, 60)} over the run", picture)
