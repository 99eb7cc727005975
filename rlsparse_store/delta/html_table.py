"""How a report shows itself: one line in a terminal, a small table in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Rows", "SummaryRepr", "escaped", "html_table"]

Value: TypeAlias = "str | int | float | None"

Rows: TypeAlias = "Iterable[tuple[str, Value]]"
"""Names and values. The texts may come from an untrusted file."""

LINE_LENGTH: Final = 120
"""Characters of a ``repr``, at most."""

MAX_ROWS: Final = 40
"""Rows of a table; the JSON form of a report has everything."""


class SummaryRepr(ABC):
    """Gives a report a one-line ``repr`` and an HTML table, both made of :meth:`_summary`.

    A dataclass that inherits it needs ``repr=False``, or its generated ``repr`` wins.
    """

    __slots__ = ()

    @abstractmethod
    def _summary(self) -> Rows:
        """What the report says, the most important first."""

    def __repr__(self) -> str:
        line = f"{type(self).__name__}("
        separator = ""
        for name, value in self._summary():
            field = f"{separator}{printable(name, 30)}={_plain(value)}"
            if len(line) + len(field) > LINE_LENGTH - len(", …)"):
                return f"{line}{separator}…)"
            line += field
            separator = ", "
        return f"{line})"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return html_table(type(self).__name__, self._summary())


def html_table(caption: str, rows: Rows) -> str:
    """A table of names and values, with every text escaped.

    Args:
        caption: Its caption.
        rows: Names and values. Only the first :data:`MAX_ROWS` are shown.

    Example:
        >>> html_table("mask", [("<b>", 12345)])
        '<table><caption>mask</caption><tr><th>&lt;b&gt;</th><td>12,345</td></tr></table>'
    """
    rows = iter(rows)
    shown = "".join(_row(name, value) for name, value in islice(rows, MAX_ROWS))
    omitted = sum(1 for _ in rows)
    more = _row("…", f"{omitted:,} more") if omitted else ""
    return f"<table><caption>{escaped(caption)}</caption>{shown}{more}</table>"


def escaped(text: str, max_length: int = 500) -> str:
    """Untrusted text as HTML: markup escaped, control characters visible, length limited.

    Example:
        >>> escaped("<script>")
        '&lt;script&gt;'
    """
    return escape(printable(text, max_length))


def _row(name: str, value: Value) -> str:
    if isinstance(value, int):
        value = f"{value:,}"
    cell = value if isinstance(value, str) else _plain(value)
    return f"<tr><th>{escaped(name)}</th><td>{escaped(cell)}</td></tr>"


def _plain(value: Value) -> str:
    """A value as short text: four digits of a float, the beginning of a text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value, 40) if isinstance(value, str) else str(value)
