"""The plot of bits per changed weight against the speed of encoding and decoding."""

from __future__ import annotations

from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Json = dict[str, Any]
# matplotlib is optional, and not installed where types are checked.
Axes: TypeAlias = Any
Line2D: TypeAlias = Any

# A palette for color-blind readers. Codecs of one color differ in their markers.
ORANGE, BLUE, PINK, GREEN, YELLOW, GREY = (
    *("#D55E00", "#0072B2", "#CC79A7"),
    *("#009E73", "#E69F00", "#555555"),
)
STYLES: Final = {
    "rlsparse_store": (ORANGE, "o"),
    "arc_v2": (BLUE, "v"),
    "arc_v3": (BLUE, "^"),
    "arc_v3, patient": (BLUE, "D"),
    "zipnn delta": (PINK, "v"),
    "z4ai delta": (PINK, "^"),
    "lmzip append": (PINK, "D"),
    "weightscope": (GREEN, "v"),
    "pcodec gaps + steps": (GREEN, "^"),
    "zstd --patch-from": (YELLOW, "v"),
    "zstd -19 --patch-from": (YELLOW, "^"),
    "PULSE v3.1": (GREY, "P"),
    "XOR + zstd-1": (GREY, "X"),
    "gap + XOR + zstd-1": (GREY, "s"),
    "int32 + bf16": (GREY, "*"),
}
MIN_MARKER, MAX_MARKER = 4.5, 10.0
"""Sizes of the markers of the lowest and the highest density."""

MAX_BITS: Final = 64
"""Right limit of the plot. An int32 and a bfloat16 take 48 bits."""


def draw(results: Json, out: Path) -> None:
    """Write the plot of the generated inputs as ``.png`` and ``.svg``."""
    inputs = [entry for entry in results["inputs"] if entry["name"].startswith("generated")]
    names = [name for name in results["codecs"] if _points(inputs, name, "encode")]
    if not names:
        return
    matplotlib = import_module("matplotlib")
    matplotlib.rcParams.update({"font.size": 10, "svg.hashsalt": "", "svg.fonttype": "none"})
    figure = import_module("matplotlib.figure").Figure(figsize=(11.5, 5.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for operation, panel in zip(("encode", "decode"), panels, strict=True):
        for name in names:
            _draw_codec(panel, name, _points(inputs, name, operation))
        _draw_axes(panel, operation, inputs)
    panels[0].set_ylabel("GB/s of the model, one core")
    figure.legend(handles=_legend(names, inputs), loc="outside right center", frameon=False)
    figure.savefig(out.with_suffix(".png"), dpi=150)
    figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})


def _points(inputs: Iterable[Json], name: str, operation: str) -> list[tuple[float, float]]:
    """Bits per changed weight and GB/s, by rising density."""
    rows = (row for entry in inputs for row in entry["results"] if row["codec"] == name)
    measured = sorted(
        (row for row in rows if "nbytes" in row and row["changed"]),
        key=lambda row: row["changed"] / row["words"],
    )
    return [
        (8 * row["nbytes"] / row["changed"], 2e-9 * row["words"] / row[operation]["seconds"])
        for row in measured
    ]


def _draw_codec(panel: Axes, name: str, points: list[tuple[float, float]]) -> None:
    """A line through the densities of a codec."""
    color, marker = STYLES[name]
    ours = color == ORANGE
    bits, speeds = zip(*points, strict=True)
    panel.plot(bits, speeds, color=color, lw=2.4 if ours else 1, alpha=1 if ours else 0.6)
    for (x, y), size in zip(points, _sizes(len(points)), strict=True):
        panel.plot(x, y, marker, color=color, ms=size, mec="white", mew=0.5, zorder=3 + ours)
    _annotate_overflow(panel, color, points)


def _annotate_overflow(panel: Axes, color: str, points: list[tuple[float, float]]) -> None:
    """Annotate a line that leaves the plot with its last value."""
    bits, speed = points[0]
    if bits > MAX_BITS:
        text = f"to {bits:.0f} bits ▸"
        style = {"color": color, "fontsize": 8, "ha": "right"}
        panel.annotate(text, (MAX_BITS, speed), (-2, -10), textcoords="offset points", **style)


def _sizes(count: int) -> list[float]:
    """Marker sizes by rising density."""
    step = (MAX_MARKER - MIN_MARKER) / max(count - 1, 1)
    return [MAX_MARKER - step * (count - 1 - i) for i in range(count)]


def _draw_axes(panel: Axes, operation: str, inputs: list[Json]) -> None:
    """Draw scales, grid, and the line of memcpy."""
    rows = [row for entry in inputs for row in entry["results"] if "nbytes" in row]
    memcpy = median(2e-9 * row["words"] / row["memcpy_seconds"] for row in rows)
    panel.axhline(memcpy, color="black", lw=1, ls=(0, (4, 3)))
    panel.annotate(
        "memcpy", (1, memcpy), (-4, 3), panel.get_yaxis_transform(), "offset points", ha="right"
    )
    panel.set(xscale="log", yscale="log", title=operation, xlabel="bits per changed weight")
    ticker = import_module("matplotlib.ticker")
    panel.set_xlim(right=MAX_BITS)
    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(ticker.NullFormatter())
    panel.grid(which="major", color="#e4e4e4", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(names: list[str], inputs: list[Json]) -> list[Line2D]:
    """Legend entries of the codecs and of the marker sizes."""
    line = import_module("matplotlib.lines").Line2D
    handles = [
        line([], [], color=STYLES[name][0], marker=STYLES[name][1], ms=7, mec="white", label=name)
        for name in names
    ]
    handles.append(line([], [], ls="", label="\nweights changed"))
    densities = [entry["name"].removeprefix("generated, ") for entry in inputs]
    handles += [
        line([], [], ls="", marker="o", color="#999999", ms=size, label=density)
        for density, size in zip(densities, _sizes(len(densities)), strict=True)
    ]
    return handles
