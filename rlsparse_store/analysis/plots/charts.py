"""Charts of an update: step sizes, changes by magnitude and by layer, sizes by encoding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.analysis.plots.figure import ACCENT, PALE, is_layer, label, new_picture
from rlsparse_store.delta.units import format_bytes, format_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.plots.figure import ImageFormat

__all__ = ["change_by_exponent", "density_by_depth", "size_comparison", "step_histogram"]

MAX_TICKS: Final = 16
"""Labels of an axis of exponents, at most."""

MAX_GAP: Final = 3
"""Axis units between two runs of exponents, at most: zeros are a hundred powers of two away."""


def step_histogram(
    labels: Sequence[str], counts: Sequence[int], image_format: ImageFormat = "png"
) -> bytes | None:
    """Draw a histogram of steps, in representable values.

    Args:
        labels: Classes of signed steps, ascending.
        counts: Changed words by class.
        image_format: ``"png"`` or ``"svg"``.

    Returns:
        The image, or ``None`` if nothing changed.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    total = sum(counts)
    if not total:
        return None
    with new_picture(6.4, 3.2, image_format) as picture:
        positions = [i for i, count in enumerate(counts) if count]
        shares = [100 * counts[i] / total for i in positions]
        picture.axes.bar(positions, shares, color=ACCENT, width=0.8)
        picture.axes.set_yscale("log")
        picture.axes.set_ylim(min(shares) / 2, max(shares) * 1.6)
        picture.axes.yaxis.set_major_formatter("{x:g}")
        picture.axes.yaxis.set_minor_formatter("")
        # Classes without changes keep their positions.
        picture.axes.set_xlim(-0.6, len(labels) - 0.4)
        names = [label(name) for name in labels]
        ticks = range(len(names))
        picture.axes.set_xticks(ticks, names, rotation=60, ha="right", parse_math=False)
        picture.axes.set_xlabel("step in representable values (classes of growing width)")
        picture.axes.set_ylabel("changed weights, % (log)")
        picture.axes.grid(axis="y", color="0.92")
        picture.set_title("steps of changed weights")
        return picture.to_bytes()


def change_by_exponent(
    exponents: Sequence[int],
    words: Sequence[int],
    changed: Sequence[int],
    image_format: ImageFormat = "png",
    *,
    half: float | None = None,
) -> bytes | None:
    """Draw the probability of a change by magnitude of the base.

    Exponents with fewer than one word in 20,000 are omitted. Gaps between exponents break the
    line and are shortened on the axis.

    Args:
        exponents: Powers of two, ascending.
        words: Words of the base by exponent.
        changed: Changed words by exponent.
        image_format: ``"png"`` or ``"svg"``.
        half: Magnitude at which half of the words changed, to be marked.

    Returns:
        The image, or ``None`` if there are no words.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    total = sum(words)
    # Rare exponents would widen the axis and make the line jump.
    common = [i for i, count in enumerate(words) if count * 20_000 >= total and count]
    if not common:
        return None
    runs = _consecutive_runs([exponents[i] for i in common])
    positions = _axis_positions(runs)
    with new_picture(6.4, 3.2, image_format) as picture:
        axes = picture.axes
        shares = [100 * words[i] / total for i in common]
        centers = [positions[exponents[i]] for i in common]
        axes.bar(centers, shares, color=PALE, width=0.9, label="share of all weights")
        probability = {exponents[i]: 100 * changed[i] / words[i] for i in common}
        for i, run in enumerate(runs):
            x, y = [positions[e] for e in run], [probability[e] for e in run]
            # One legend entry for all parts of the line.
            name = None if i else "changed share of this magnitude"
            axes.plot(x, y, color=ACCENT, marker="o", markersize=3, label=name)
        axes.axhline(50, color="0.7", linewidth=0.8, linestyle=":")
        if half is not None:
            _mark_half(axes, half, positions)
        _label_powers(axes, runs, positions)
        # Leave space above for the legend and the mark.
        highest = max(50, *shares, *probability.values())
        axes.set_yticks(range(0, 101, 25 if highest > 60 else 10))
        axes.set_ylim(0, 1.35 * highest)
        axes.set_xlabel("magnitude of the base weight (exponent)")
        axes.set_ylabel("weights, %")
        axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
        picture.set_title("probability of a change by magnitude of the base weight")
        return picture.to_bytes()


def _consecutive_runs(exponents: Sequence[int]) -> list[list[int]]:
    """Split ascending exponents into runs of consecutive ones."""
    runs: list[list[int]] = []
    for exponent in exponents:
        if runs and runs[-1][-1] == exponent - 1:
            runs[-1].append(exponent)
        else:
            runs.append([exponent])
    return runs


def _axis_positions(runs: Sequence[Sequence[int]]) -> dict[int, int]:
    """The position of each exponent on the axis, with shortened gaps."""
    positions: dict[int, int] = {}
    position = last = runs[0][0]
    for exponent in (exponent for run in runs for exponent in run):
        position += min(exponent - last, MAX_GAP)
        positions[exponent], last = position, exponent
    return positions


def _label_powers(axes: Any, runs: Sequence[Sequence[int]], positions: dict[int, int]) -> None:  # noqa: ANN401
    """Label some exponents, among them the first one of each run."""
    step = -(-len(positions) // MAX_TICKS)
    labeled = [exponent for run in runs for exponent in run[::step]][: 4 * MAX_TICKS]
    names = [f"$2^{{{exponent}}}$" for exponent in labeled]
    if len(runs) > 1 and runs[1][0] - runs[0][-1] > MAX_GAP and len(runs[0]) == 1:
        # An isolated smallest exponent: zeros and subnormals, not one power of two.
        names[0] = f"$<2^{{{labeled[0] + 1}}}$"
    axes.set_xticks([positions[exponent] for exponent in labeled], names)


def _mark_half(axes: Any, half: float, positions: dict[int, int]) -> None:  # noqa: ANN401
    # Words of an exponent are about half a power of two above it.
    power = math.log2(half) - 0.5
    below = [exponent for exponent in positions if exponent <= power]
    if below:
        x = positions[below[-1]] + min(power - below[-1], 1)
        axes.plot([x], [50], color=ACCENT, marker="o", markersize=7, markerfacecolor="white")
        text = f"half at {half:.3g}"
        axes.annotate(text, (x, 50), (4, 6), textcoords="offset points", fontsize=8)


def density_by_depth(
    layers: Sequence[tuple[str, int, int]], image_format: ImageFormat = "png"
) -> bytes | None:
    """Draw the density of each layer.

    Args:
        layers: Name, words and changed words of each layer.
        image_format: ``"png"`` or ``"svg"``.

    Returns:
        The image, or ``None`` if no layer has a number.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    numbered = sorted((int(name), n, k) for name, n, k in layers if is_layer(name) and n)
    if not numbered:
        return None
    with new_picture(6.4, 2.8, image_format) as picture:
        numbers = [layer for layer, _, _ in numbered]
        densities = [100 * k / n for _, n, k in numbered]
        picture.axes.plot(numbers, densities, color=ACCENT, marker="o", markersize=4)
        picture.axes.set_ylim(0, max(densities) * 1.1 or 1)
        # A margin around a single layer, which would get fractional ticks.
        margin = max(0.5, 0.03 * (numbers[-1] - numbers[0]))
        picture.axes.set_xlim(numbers[0] - margin, numbers[-1] + margin)
        picture.axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        picture.axes.set_xlabel("layer")
        picture.axes.set_ylabel("changed weights, %")
        picture.axes.grid(axis="y", color="0.92")
        picture.set_title("changed weights by depth")
        return picture.to_bytes()


def size_comparison(
    sizes: Sequence[tuple[str, int]], image_format: ImageFormat = "png"
) -> bytes | None:
    """Draw the size of an update under several encodings.

    Args:
        sizes: Names and bytes. The first one is highlighted.
        image_format: ``"png"`` or ``"svg"``.

    Returns:
        The image, or ``None`` if all sizes are zero.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    present = [(name, nbytes) for name, nbytes in sizes if nbytes > 0]
    if not present:
        return None
    with new_picture(6.8, 0.9 + 0.32 * len(present), image_format) as picture:
        largest = max(nbytes for _, nbytes in present)
        for y, (_, nbytes) in enumerate(present):
            # By position, since another encoding may have the same name and size.
            is_first = y == 0 and sizes[0][1] > 0
            picture.axes.barh(y, nbytes, color=ACCENT if is_first else PALE, height=0.7)
            share = format_percent(nbytes / largest)
            text = f" {format_bytes(nbytes)}" + ("" if nbytes == largest else f", {share}")
            picture.axes.text(nbytes, y, text, va="center", fontsize=8, parse_math=False)
        names = [label(name, 50) for name, _ in present]
        picture.axes.set_yticks(range(len(present)), names, parse_math=False)
        picture.axes.invert_yaxis()
        picture.axes.set_xlim(0, largest * 1.25)
        picture.axes.xaxis.set_visible(False)
        picture.axes.spines["bottom"].set_visible(False)
        picture.axes.tick_params(length=0)
        picture.set_title("size of the update by encoding")
        return picture.to_bytes()
