"""Text for people and JSON for machines on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["percent", "print_json", "print_table", "progress_bar", "size"]


def size(nbytes: float) -> str:
    """Bytes with a decimal unit and three digits, as disks and the Hub count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def percent(share: float) -> str:
    """A share with three significant digits."""
    return "0 %" if share == 0 else f"{100 * share:.3g} %"


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(["", first, *rest]).rstrip())


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a function to report bytes done and bytes in all, shown on a terminal only."""
    disable = quiet or not sys.stderr.isatty()
    with tqdm(desc=label, unit="B", unit_scale=True, disable=disable, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report
