"""Choosing entries of a run: by name, by pattern, the last one, or the best one."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal

from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.errors import NotFoundError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.delta.run_files import IndexRow

__all__ = ["best_entry", "choose_entries", "choose_entry", "in_training_order"]

BEST: Final = "best:"
"""Prefix of the metric whose best entry is chosen."""


def choose_entries(
    rows: Sequence[IndexRow], only: Sequence[str], best: Literal["max", "min"], place: object
) -> list[IndexRow]:
    """The chosen entries of a run, in its order.

    Args:
        rows: The entries, in order.
        only: What to choose; everything if empty. Each is the folder, the name (then the current
            one of this name) or the tuned digest of an entry, else ``last``, ``best:METRIC`` or a
            pattern of folders or names, such as ``checkpoint-*00``.
        best: Whether the best entry has the largest or the smallest value.
        place: The run, for errors.

    Raises:
        NotFoundError: Something is not in the run.
    """
    chosen = {row.folder for asked in only for row in _matching(rows, asked, best, place)}
    return [row for row in rows if not only or row.folder in chosen]


def choose_entry(rows: Sequence[IndexRow], name: str, place: object) -> IndexRow:
    """The entry of a run, by its folder, its name (then the current one) or its tuned digest.

    Raises:
        NotFoundError: There is none.
    """
    found = _named(rows, name)
    if not found:
        raise _no_entry(name, place)
    return found[-1]


def _named(rows: Sequence[IndexRow], name: str) -> list[IndexRow]:
    return (
        [row for row in rows if row.folder == name]
        or [row for row in rows if row.name == name]
        or [row for row in rows if row.tuned == name]
    )


def _no_entry(name: str, place: object) -> NotFoundError:
    msg = f"has no entry {printable(name)}; rlsparse inspect lists its entries"
    return NotFoundError(msg, file=printable(str(place)))


def _matching(rows: Sequence[IndexRow], asked: str, best: str, place: object) -> Sequence[IndexRow]:
    if exact := _named(rows, asked):
        return exact[-1:]
    if asked == "last":
        return in_training_order(rows)[-1:]
    if asked.startswith(BEST):
        return [best_entry(rows, asked.removeprefix(BEST), best, place)]
    found = [r for r in rows if fnmatchcase(r.folder, asked) or fnmatchcase(r.name, asked)]
    if not found:
        raise _no_entry(asked, place)
    return found


def in_training_order(rows: Sequence[IndexRow]) -> list[IndexRow]:
    """The entries in order of their steps, if all have one."""
    if any(row.step is None for row in rows):
        return list(rows)
    return sorted(rows, key=lambda row: (row.step, natural_order(row.folder)))


def best_entry(rows: Sequence[IndexRow], metric: str, best: str, place: object) -> IndexRow:
    """The entry with the best value of a metric, the last one of equals.

    Args:
        rows: The entries, in order.
        metric: Name of the metric.
        best: ``"max"`` or ``"min"``.
        place: The run, for errors.

    Raises:
        NotFoundError: No entry has the metric.
    """
    having = [row for row in rows if metric in row.metrics]
    if not having:
        known = sorted({name for row in rows for name in row.metrics})
        listed = ", ".join(map(printable, known)) or "none"
        msg = f"no entry has the metric {printable(metric)}; there are: {listed}"
        raise NotFoundError(msg, file=printable(str(place)))
    sign = 1 if best == "max" else -1
    return max(reversed(having), key=lambda row: sign * row.metrics[metric])
