"""Files of a report: pictures, and one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from rlsparse_store.analysis.plots.charts import (
    change_by_exponent,
    density_by_depth,
    size_comparison,
    step_histogram,
)
from rlsparse_store.analysis.plots.heatmap import density_map
from rlsparse_store.analysis.plots.page import write_page
from rlsparse_store.delta.report import STEP_LABELS
from rlsparse_store.delta.units import format_bits, format_bytes, format_percent
from rlsparse_store.files.output import require_new, write_new
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rlsparse_store.analysis.plots.figure import ImageFormat
    from rlsparse_store.analysis.value_report import ValueReport
    from rlsparse_store.delta.report import DeltaReport, Group

__all__ = ["require_new_pictures", "save_pictures", "write_pictures", "write_report"]

_CAPTIONS: Final = {
    "map": "Changed weights by layer and kind of module",
    "depth": "Changed weights by layer",
    "steps": "Steps of changed weights",
    "exponents": "Probability of a change by the base's magnitude",
    "sizes": "Size of the changes",
}
"""Caption of each picture, by the name of its files."""

_FORMS: Final[tuple[ImageFormat, ...]] = ("png", "svg")


def require_new_pictures(folder: Path) -> None:
    """Check that a folder has none of the pictures.

    Raises:
        OutputError: It has one.
    """
    for name in _CAPTIONS:
        for form in _FORMS:
            require_new(folder / f"{name}.{form}")


def write_pictures(report: DeltaReport, values: ValueReport | None, folder: Path) -> None:
    """Write every picture, as PNG and SVG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: The folder cannot be written, or has one of the pictures.
    """
    save_pictures(lambda form: _pictures(report, values, form), folder)


def save_pictures(draw: Callable[[ImageFormat], Mapping[str, bytes]], folder: Path) -> None:
    """Write pictures, as PNG and SVG.

    Args:
        draw: Draws them in a format, by the names of their files without a suffix.
        folder: Folder to write.

    Raises:
        OutputError: The folder cannot be written, or has one of the pictures.
    """
    # All are drawn before the first is written.
    pictures = {f"{name}.{form}": data for form in _FORMS for name, data in draw(form).items()}
    for name in pictures:
        require_new(folder / name)
    for name, picture in pictures.items():
        write_new(folder / name, picture)
    click.echo(f"wrote {printable(str(folder))}", err=True)


def write_report(
    places: Sequence[str], report: DeltaReport, values: ValueReport | None, path: Path
) -> None:
    """Write one self-contained page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: The page cannot be written, or exists.
    """
    title = f"{format_percent(report.density)} of {report.elements:,} weights changed"
    base = report.base_repo or "not named"
    facts = [
        ("inspected", " → ".join(places)),
        ("base", f"{base}, {report.base_digest[:16]}…"),
        ("base's commit", report.base_revision or "not named"),
        ("tuned", f"{report.tuned_digest[:16]}…"),
        ("weights changed", f"{report.changed:,} of {report.elements:,}"),
        ("tensors", format_bytes(report.tuned_bytes)),
        ("delta", format_bytes(report.delta_bytes)),
    ]
    if report.bits_per_changed is not None:
        facts.append(("bits per changed weight", format_bits(report.bits_per_changed)))
    if report.cast:
        facts.append(("lossy", f"rounded to {report.cast} before encoding"))
    drawn = _pictures(report, values, "png")
    pictures = [(_CAPTIONS[name], picture) for name, picture in drawn.items()]
    text = write_page(title, facts + _value_facts(values), _tables(report, values), pictures)
    write_new(path, text.encode())
    click.echo(f"wrote {printable(str(path))}", err=True)


def _value_facts(values: ValueReport | None) -> list[tuple[str, str]]:
    if values is None:
        return []
    facts = [
        ("unchanged at 1e-5", format_percent(values.unchanged_within["1e-05"])),
        ("mean density of tensors, unweighted", format_percent(values.mean_density)),
        ("norm of the update", f"{values.delta_norm:.4g}"),
        ("unchanged tensors", format_percent(values.inactive_ratio)),
    ]
    if values.exponents is not None and values.exponents.half_magnitude is not None:
        facts.append(("magnitude at which half changed", f"{values.exponents.half_magnitude:.3g}"))
    return facts + [("caution", caution) for caution in values.cautions]


def _pictures(
    report: DeltaReport, values: ValueReport | None, form: ImageFormat
) -> dict[str, bytes]:
    """The pictures, by name."""
    labels: Sequence[str] = STEP_LABELS[3::-1] + STEP_LABELS[4:]
    counts = [*report.steps[3::-1], *report.steps[4:]]
    if values is not None:
        labels, counts = values.step_labels, values.steps
    layers = [(g.name, g.elements, g.changed) for g in report.layers]
    found = {
        "map": density_map(report, form),
        "depth": density_by_depth(layers, form),
        "steps": step_histogram(labels, counts, form),
    }
    if values is not None and values.exponents is not None:
        table = values.exponents
        found["exponents"] = change_by_exponent(
            table.exponents, table.words, table.changed, form, half=table.half_magnitude
        )
    if values is not None:
        sizes = [(e.name, e.nbytes) for e in values.encodings]
        found["sizes"] = size_comparison(sizes, form)
    return {name: picture for name, picture in found.items() if picture is not None}


def _tables(
    report: DeltaReport, values: ValueReport | None
) -> list[tuple[str, list[str], list[list[str]]]]:
    headings = ["", "tensors", "weights", "changed", "density"]
    tables = [
        ("By layer", headings, _rows(report.layers)),
        ("By kind of module", headings, _rows(report.modules)),
    ]
    if values is not None:
        rows = [[f"≤ {t}", format_percent(s)] for t, s in values.unchanged_within.items()]
        tables.append(("Unchanged, by tolerance", ["difference", "unchanged"], rows))
        sizes = [[e.name, e.used_by, format_bytes(e.nbytes)] for e in values.encodings]
        tables.append(("Size of the changes", ["encoding", "used by", "size"], sizes))
    rows = [
        [t.name, t.kind, t.dtype, f"{t.elements:,}", f"{t.changed:,}", format_percent(t.density)]
        for t in report.tensors
    ]
    tables.append(("By tensor", ["tensor", "kind", "dtype", "weights", "changed", "density"], rows))
    return tables


def _rows(groups: list[Group]) -> list[list[str]]:
    return [
        [g.name, f"{g.tensors:,}", f"{g.elements:,}", f"{g.changed:,}", format_percent(g.density)]
        for g in groups
    ]
