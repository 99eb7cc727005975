"""Charts of an update: how far, at which magnitudes, at what depth, in how many bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.analysis.plots.figure import ACCENT, PALE, is_layer, label, picture
from rlsparse_store.delta.units import format_bytes, format_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["change_by_exponent", "density_by_depth", "size_comparison", "step_histogram"]


MOST_TICKS: Final = 16
"""Labels below a chart of magnitudes."""

WIDEST_GAP: Final = 3
"""Places that magnitudes without weights take at most: zeros lie a hundred powers of two away."""


def step_histogram(labels: Sequence[str], counts: Sequence[int], form: str = "png") -> bytes | None:
    """Draw how far changed weights moved.

    Args:
        labels: Classes of signed steps, from far down to far up.
        counts: Changed words of each.
        form: ``"png"`` or ``"svg"``.

    Returns:
        The picture, or ``None`` if nothing changed.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    total = sum(counts)
    if not total:
        return None
    with picture(6.4, 3.2, form) as drawn:
        places = [place for place, count in enumerate(counts) if count]
        shares = [100 * counts[place] / total for place in places]
        drawn.axes.bar(places, shares, color=ACCENT, width=0.8)
        drawn.axes.set_yscale("log")
        drawn.axes.set_ylim(min(shares) / 2, max(shares) * 1.6)
        drawn.axes.yaxis.set_major_formatter("{x:g}")
        drawn.axes.yaxis.set_minor_formatter("")
        # A class without changes keeps its place.
        drawn.axes.set_xlim(-0.6, len(labels) - 0.4)
        names = [label(name) for name in labels]
        ticks = range(len(names))
        drawn.axes.set_xticks(ticks, names, rotation=60, ha="right", parse_math=False)
        drawn.axes.set_xlabel("representable values moved, in classes that widen")
        drawn.axes.set_ylabel("changed weights, % (log)")
        drawn.axes.grid(axis="y", color="0.92")
        drawn.titled("how far changed weights moved")
        return drawn.saved()


def change_by_exponent(
    exponents: Sequence[int],
    words: Sequence[int],
    changed: Sequence[int],
    form: str = "png",
    *,
    half: float | None = None,
) -> bytes | None:
    """Draw how probable a change is at each magnitude of the base.

    Exponents of less than one word in 20,000 are left out, and the line is broken where there are
    none: the axis is shortened there.

    Args:
        exponents: Powers of two, ascending.
        words: Words of the base with each.
        changed: Those of them that changed.
        form: ``"png"`` or ``"svg"``.
        half: Magnitude at which a change is as likely as not, to be marked.

    Returns:
        The picture, or ``None`` if there are no words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    total = sum(words)
    # Exponents that hardly any word has would make the picture wide and the line jump.
    seen = [i for i, count in enumerate(words) if count * 20_000 >= total and count]
    if not seen:
        return None
    runs = _runs([exponents[i] for i in seen])
    place_of = _places(runs)
    with picture(6.4, 3.2, form) as drawn:
        axes = drawn.axes
        shares = [100 * words[i] / total for i in seen]
        places = [place_of[exponents[i]] for i in seen]
        axes.bar(places, shares, color=PALE, width=0.9, label="share of all weights")
        probable = {exponents[i]: 100 * changed[i] / words[i] for i in seen}
        for number, run in enumerate(runs):
            at = [place_of[e] for e in run]
            # One entry in the legend for all parts of the line.
            name = "" if number else "of this magnitude, changed"
            values = [probable[e] for e in run]
            axes.plot(at, values, color=ACCENT, marker="o", markersize=3, label=name or None)
        axes.axhline(50, color="0.7", linewidth=0.8, linestyle=":")
        if half is not None:
            _mark_half(axes, half, place_of)
        _label_powers(axes, runs, place_of)
        # Room above for the legend and the mark.
        highest = max(50, *shares, *probable.values())
        axes.set_yticks(range(0, 101, 25 if highest > 60 else 10))
        axes.set_ylim(0, 1.35 * highest)
        axes.set_xlabel("magnitude of the base weight, from this power of two to the next")
        axes.set_ylabel("weights, %")
        axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
        drawn.titled("probability of a change, by the base's magnitude")
        return drawn.saved()


def _runs(exponents: Sequence[int]) -> list[list[int]]:
    """Exponents that follow one another."""
    runs: list[list[int]] = []
    for exponent in exponents:
        if runs and runs[-1][-1] == exponent - 1:
            runs[-1].append(exponent)
        else:
            runs.append([exponent])
    return runs


def _places(runs: Sequence[Sequence[int]]) -> dict[int, int]:
    """Where each exponent is drawn."""
    places: dict[int, int] = {}
    place = last = runs[0][0]
    for exponent in (exponent for run in runs for exponent in run):
        place += min(exponent - last, WIDEST_GAP)
        places[exponent], last = place, exponent
    return places


def _label_powers(axes: Any, runs: Sequence[Sequence[int]], place_of: dict[int, int]) -> None:  # noqa: ANN401
    """Name some of the exponents, the first after each gap among them."""
    step = -(-len(place_of) // MOST_TICKS)
    named = [exponent for run in runs for exponent in run[::step]][: 4 * MOST_TICKS]
    names = [f"$2^{{{exponent}}}$" for exponent in named]
    if len(runs) > 1 and runs[1][0] - runs[0][-1] > WIDEST_GAP and len(runs[0]) == 1:
        # All by itself: zeros and subnormals, which no power of two tells.
        names[0] = f"$<2^{{{named[0] + 1}}}$"
    axes.set_xticks([place_of[exponent] for exponent in named], names)


def _mark_half(axes: Any, half: float, place_of: dict[int, int]) -> None:  # noqa: ANN401
    # The words of an exponent lie about half a power above it.
    power = math.log2(half) - 0.5
    below = [exponent for exponent in place_of if exponent <= power]
    if below:
        place = place_of[below[-1]] + min(power - below[-1], 1)
        axes.plot([place], [50], color=ACCENT, marker="o", markersize=7, markerfacecolor="white")
        text = f"half at {half:.3g}"
        axes.annotate(text, (place, 50), (4, 6), textcoords="offset points", fontsize=8)


def density_by_depth(layers: Sequence[tuple[str, int, int]], form: str = "png") -> bytes | None:
    """Draw how much of each layer changed.

    Args:
        layers: Name, words and changed words of each layer.
        form: ``"png"`` or ``"svg"``.

    Returns:
        The picture, or ``None`` if no layer has a number.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    numbered = sorted((int(name), n, k) for name, n, k in layers if is_layer(name) and n)
    if not numbered:
        return None
    with picture(6.4, 2.8, form) as drawn:
        places = [layer for layer, _, _ in numbered]
        densities = [100 * k / n for _, n, k in numbered]
        drawn.axes.plot(places, densities, color=ACCENT, marker="o", markersize=4)
        drawn.axes.set_ylim(0, max(densities) * 1.1 or 1)
        # With room around a single layer, whose ticks would be fractions.
        margin = max(0.5, 0.03 * (places[-1] - places[0]))
        drawn.axes.set_xlim(places[0] - margin, places[-1] + margin)
        drawn.axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        drawn.axes.set_xlabel("layer")
        drawn.axes.set_ylabel("changed weights, %")
        drawn.axes.grid(axis="y", color="0.92")
        drawn.titled("changed weights by depth")
        return drawn.saved()


def size_comparison(sizes: Sequence[tuple[str, int]], form: str = "png") -> bytes | None:
    """Draw what the changes take under several encodings.

    Args:
        sizes: Names and bytes; the first is ours.
        form: ``"png"`` or ``"svg"``.

    Returns:
        The picture, or ``None`` if none takes anything.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    present = [(name, nbytes) for name, nbytes in sizes if nbytes > 0]
    if not present:
        return None
    with picture(6.8, 0.9 + 0.32 * len(present), form) as drawn:
        largest = max(nbytes for _, nbytes in present)
        for place, (_, nbytes) in enumerate(present):
            # By its place, and only if it is there: another may have its name and size.
            is_ours = place == 0 and sizes[0][1] > 0
            drawn.axes.barh(place, nbytes, color=ACCENT if is_ours else PALE, height=0.7)
            share = format_percent(nbytes / largest)
            text = f" {format_bytes(nbytes)}" + ("" if nbytes == largest else f", {share}")
            drawn.axes.text(nbytes, place, text, va="center", fontsize=8, parse_math=False)
        names = [label(name, 50) for name, _ in present]
        drawn.axes.set_yticks(range(len(present)), names, parse_math=False)
        drawn.axes.invert_yaxis()
        drawn.axes.set_xlim(0, largest * 1.25)
        drawn.axes.xaxis.set_visible(False)
        drawn.axes.spines["bottom"].set_visible(False)
        drawn.axes.tick_params(length=0)
        drawn.titled("what the changes take")
        return drawn.saved()
