"""Text for people and JSON for machines on standard output, progress on standard error."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from rlsparse_store.pipeline.progress import no_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["print_json", "print_table", "progress_bar"]


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column aligned left, the others right.

    On a terminal that is too narrow, the first column has a line of its own.
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    columns = shutil.get_terminal_size().columns
    narrow = (
        sys.stdout is not None and sys.stdout.isatty() and sum(widths) + 2 * len(widths) > columns
    )
    for row in (headings, *rows):
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        if narrow:
            click.echo(f"  {first.rstrip()}")
            first = "  "
        click.echo("  ".join(["", first, *rest]).rstrip())


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that reports bytes done and bytes in all. Draws on a terminal only.

    Also prints the library's log messages, such as the size of a download.
    """
    if quiet or not sys.stderr.isatty():
        yield no_progress
        return
    # Imported late because it takes a while.
    from tqdm import tqdm  # noqa: PLC0415

    with (
        _notes(tqdm.write),
        tqdm(desc=label, unit="B", unit_scale=True, leave=False) as bar,
    ):

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


class _Notes(logging.Handler):
    """Writes log messages above the progress bar."""

    def __init__(self, write: Callable[..., None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(f"rlsparse: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _notes(write: Callable[..., None]) -> Iterator[None]:
    log, notes = logging.getLogger("rlsparse_store"), _Notes(write)
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(notes)
