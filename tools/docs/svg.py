"""A small canvas for pictures of lines, boxes and text: one drawing, in light and in dark."""

from __future__ import annotations

from html import escape
from typing import Final, Literal, TypeAlias

__all__ = ["Anchor", "Ink", "Svg", "Theme"]

Theme: TypeAlias = Literal["light", "dark"]
Ink: TypeAlias = Literal["text", "muted", "line", "accent", "pale", "changed", "pale_changed"]
Anchor: TypeAlias = Literal["start", "middle", "end"]

_COLORS: Final[dict[Theme, dict[Ink, str]]] = {
    "light": {
        "text": "#1b2733",
        "muted": "#5a6875",
        "line": "#aab6c1",
        "accent": "#1f5a87",
        "pale": "#e6edf3",
        "changed": "#c2410c",
        "pale_changed": "#fde3d3",
    },
    "dark": {
        "text": "#e6edf3",
        "muted": "#a3b1be",
        "line": "#52606d",
        "accent": "#79b8ea",
        "pale": "#22303d",
        "changed": "#ff9b54",
        "pale_changed": "#4a2a17",
    },
}
_SANS: Final = "Verdana, 'DejaVu Sans', sans-serif"
_MONO: Final = "'DejaVu Sans Mono', Menlo, Consolas, monospace"


class Svg:
    """A picture with a transparent background. The same calls give the same bytes.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        theme: The background that the colors are for.
        title: What the picture shows, for readers who do not see it.
    """

    def __init__(self, width: int, height: int, theme: Theme, title: str) -> None:
        self._colors = _COLORS[theme]
        self._parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
                f' width="{width}" height="{height}" role="img">'
            ),
            f"<title>{escape(title)}</title>",
        ]

    def box(
        self, x: float, y: float, width: float, height: float, fill: Ink, *, edge: Ink | None = None
    ) -> None:
        """Draw a filled box; ``edge`` is the color of its outline."""
        stroke = f' stroke="{self._colors[edge]}"' if edge else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
            f' fill="{self._colors[fill]}"{stroke}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        ink: Ink = "text",
        *,
        size: int = 13,
        anchor: Anchor = "start",
        mono: bool = False,
        bold: bool = False,
    ) -> None:
        """Write one line; ``y`` is its baseline."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{self._colors[ink]}" font-size="{size}"'
            f' font-family="{_MONO if mono else _SANS}" text-anchor="{anchor}"{weight}'
            f' xml:space="preserve">{escape(text, quote=False)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, ink: Ink = "line") -> None:
        """Draw a line."""
        self._parts.append(
            f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{self._colors[ink]}"'
            ' stroke-width="1.5" fill="none"/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, ink: Ink = "muted") -> None:
        """Draw a horizontal or vertical arrow to the second point."""
        self.line(x1, y1, x2, y2, ink)
        dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
        left = (x2 - 8 * dx - 4 * dy, y2 - 8 * dy - 4 * dx)
        right = (x2 - 8 * dx + 4 * dy, y2 - 8 * dy + 4 * dx)
        self._parts.append(
            f'<path d="M{x2:g} {y2:g}L{left[0]:g} {left[1]:g}L{right[0]:g} {right[1]:g}Z"'
            f' fill="{self._colors[ink]}"/>'
        )

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])
