"""A self-contained HTML page."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.html_table import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["write_page"]

# Nothing is loaded and nothing runs, even if a name got past the escaping.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE: Final = """
:root { color-scheme: light dark; --line: #d5dbe0; --quiet: #5b6670; }
@media (prefers-color-scheme: dark) { :root { --line: #3a424a; --quiet: #9aa5ae; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figcaption { color: var(--quiet); font-size: .9rem; }
img { background: #fff; border-radius: .4rem; max-width: 100%; height: auto; padding: .5rem;
  box-sizing: border-box; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .7rem; text-align: left;
  white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { padding-left: 0; }
th { color: var(--quiet); font-weight: 600; }
@media (max-width: 34rem) { dl { display: block; } dd { margin-bottom: .5rem; } }
"""

_NUMBER: Final = re.compile(r"[-+≤<]? ?[0-9]")


def write_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """Render facts, pictures and tables as HTML. Every text may be untrusted.

    Args:
        title: Title of the page.
        facts: Names and values.
        tables: Title, headings and rows of each table. Columns of numbers, except the first
            column, are aligned right. Tables without rows are omitted.
        pictures: Captions and images, PNG or SVG.

    Returns:
        The page.
    """
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
    )
    parts = [head, f"<body>\n<main>\n<h1>{escaped(title)}</h1>\n", _facts(facts)]
    parts += [_figure(caption, picture) for caption, picture in pictures]
    parts += [_table(*table) for table in tables if table[2]]
    parts.append("</main>\n</body>\n</html>\n")
    return "".join(parts)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>\n" for name, value in facts)
    return f"<dl>\n{rows}</dl>\n"


def _figure(caption: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode("ascii")
    # As an image, an SVG cannot add markup to the page.
    kind = "svg+xml" if picture.startswith(b"<?xml") else "png"
    image = f'<img src="data:image/{kind};base64,{data}" alt="{escaped(caption)}">'
    return f"<figure>\n{image}\n<figcaption>{escaped(caption)}</figcaption>\n</figure>\n"


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numeric = {c for c in range(1, len(headings)) if _is_numeric([row[c] for row in rows])}
    classes = [' class="n"' if c in numeric else "" for c in range(len(headings))]
    head = "".join(
        # Screen readers announce an empty heading.
        f'<th scope="col"{cls}>{escaped(name)}</th>' if name else "<td></td>"
        for name, cls in zip(headings, classes, strict=True)
    )
    lines = (
        "".join(f"<td{cls}>{escaped(cell)}</td>" for cell, cls in zip(row, classes, strict=True))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    # In the tab order, so that it scrolls by keyboard.
    return (
        f'<h2>{escaped(title)}</h2>\n<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escaped(title)}">\n<table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _is_numeric(cells: Sequence[str]) -> bool:
    return any(cells) and all(_NUMBER.match(cell) for cell in cells if cell)
