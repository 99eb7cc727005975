"""The plot: bits per changed weight against the speeds of encoding and decoding."""

from __future__ import annotations

from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Json = dict[str, Any]
# matplotlib is needed for this alone, and is not among what the types are checked with.
Axes: TypeAlias = Any
Line2D: TypeAlias = Any

# Colours that the colour-blind tell apart; codecs of one colour differ in their markers.
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
    "weightscope": (GREEN, "v"),
    "pcodec gaps + steps": (GREEN, "^"),
    "zstd --patch-from": (YELLOW, "v"),
    "zstd -19 --patch-from": (YELLOW, "^"),
    "PULSE v3.1": (GREY, "P"),
    "XOR + zstd-1": (GREY, "X"),
    "gap + XOR + zstd-1": (GREY, "s"),
    "int32 + bf16": (GREY, "*"),
}
SMALLEST, LARGEST = 4.5, 10.0
"""Sizes of the markers of the lowest and of the highest density."""

MOST_BITS: Final = 64
"""Where the plot ends: an int32 and a bfloat16 take 48."""


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
    for way, panel in zip(("encode", "decode"), panels, strict=True):
        for name in names:
            _line(panel, name, _points(inputs, name, way))
        _finish(panel, way, inputs)
    panels[0].set_ylabel("GB/s of the model, one core")
    figure.legend(handles=_legend(names, inputs), loc="outside right center", frameon=False)
    figure.savefig(out.with_suffix(".png"), dpi=150)
    figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})


def _points(inputs: Iterable[Json], name: str, way: str) -> list[tuple[float, float]]:
    """Bits per changed weight and GB/s, by rising density."""
    rows = (row for entry in inputs for row in entry["results"] if row["codec"] == name)
    measured = sorted(
        (row for row in rows if "nbytes" in row and row["changed"]),
        key=lambda row: row["changed"] / row["words"],
    )
    return [
        (8 * row["nbytes"] / row["changed"], 2e-9 * row["words"] / row[way]["seconds"])
        for row in measured
    ]


def _line(panel: Axes, name: str, points: list[tuple[float, float]]) -> None:
    """A codec's densities, joined."""
    colour, marker = STYLES[name]
    ours = colour == ORANGE
    bits, speeds = zip(*points, strict=True)
    panel.plot(bits, speeds, color=colour, lw=2.4 if ours else 1, alpha=1 if ours else 0.6)
    for (x, y), size in zip(points, _sizes(len(points)), strict=True):
        panel.plot(x, y, marker, color=colour, ms=size, mec="white", mew=0.5, zorder=3 + ours)
    _tell_beyond(panel, colour, points)


def _tell_beyond(panel: Axes, colour: str, points: list[tuple[float, float]]) -> None:
    """Say how far a line that leaves the plot goes on."""
    most, speed = points[0]
    if most > MOST_BITS:
        text = f"to {most:.0f} bits ▸"
        style = {"color": colour, "fontsize": 8, "ha": "right"}
        panel.annotate(text, (MOST_BITS, speed), (-2, -10), textcoords="offset points", **style)


def _sizes(count: int) -> list[float]:
    step = (LARGEST - SMALLEST) / max(count - 1, 1)
    return [LARGEST - step * (count - 1 - place) for place in range(count)]


def _finish(panel: Axes, way: str, inputs: list[Json]) -> None:
    """Axes, the line of memcpy, and which way is better."""
    rows = [row for entry in inputs for row in entry["results"] if "nbytes" in row]
    memcpy = median(2e-9 * row["words"] / row["memcpy_seconds"] for row in rows)
    panel.axhline(memcpy, color="black", lw=1, ls=(0, (4, 3)))
    panel.annotate(
        "memcpy", (1, memcpy), (-4, 3), panel.get_yaxis_transform(), "offset points", ha="right"
    )
    panel.set(xscale="log", yscale="log", title=way, xlabel="bits per changed weight")
    ticker = import_module("matplotlib.ticker")
    panel.set_xlim(right=MOST_BITS)
    plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(ticker.NullFormatter())
    panel.grid(which="major", color="#e4e4e4", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(names: list[str], inputs: list[Json]) -> list[Line2D]:
    """Every codec, and what the sizes of the markers mean."""
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
