"""Charts of an update: how far, at which magnitudes, at what depth, in how many bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.delta import percent, size
from rlsparse_store.plots.figures import ACCENT, PALE, label, picture

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["change_by_exponent", "density_by_depth", "size_comparison", "step_histogram"]


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
        shares = [100 * count / total for count in counts]
        places = [place for place, count in enumerate(counts) if count]
        drawn.axes.bar(places, [shares[p] for p in places], color=ACCENT, width=0.8)
        drawn.axes.set_yscale("log")
        drawn.axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
        drawn.axes.set_xlabel("representable values moved")
        drawn.axes.set_ylabel("changed weights, %")
        drawn.axes.grid(axis="y", color="0.92")
        drawn.titled("how far changed weights moved")
        return drawn.saved()


def change_by_exponent(
    exponents: Sequence[int], words: Sequence[int], changed: Sequence[int], form: str = "png"
) -> bytes | None:
    """Draw how probable a change is at each magnitude of the base.

    Args:
        exponents: Powers of two.
        words: Words of the base with each.
        changed: Those of them that changed.
        form: ``"png"`` or ``"svg"``.

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
    with picture(6.4, 3.2, form) as drawn:
        places = [exponents[i] for i in seen]
        shares = [100 * words[i] / total for i in seen]
        drawn.axes.bar(places, shares, color=PALE, width=0.9, label="weights of this magnitude")
        probable = [100 * changed[i] / words[i] for i in seen]
        drawn.axes.plot(
            places, probable, color=ACCENT, marker="o", markersize=3, label="of them changed"
        )
        drawn.axes.axhline(50, color="0.7", linewidth=0.8, linestyle=":")
        step = 1 + (places[-1] - places[0]) // 16
        ticks = range(places[0], places[-1] + 1, step)
        drawn.axes.set_xticks(ticks, [f"2^{tick}" for tick in ticks], rotation=45, ha="right")
        drawn.axes.set_xlabel("magnitude of the base weight, from")
        drawn.axes.set_ylabel("%")
        drawn.axes.legend(frameon=False, fontsize=8)
        drawn.titled("probability of a change, by the base's magnitude")
        return drawn.saved()


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
    numbered = sorted((int(name), n, k) for name, n, k in layers if name.isdecimal() and n)
    if not numbered:
        return None
    with picture(6.4, 2.8, form) as drawn:
        places = [layer for layer, _, _ in numbered]
        densities = [100 * k / n for _, n, k in numbered]
        drawn.axes.plot(places, densities, color=ACCENT, marker="o", markersize=4)
        drawn.axes.set_ylim(0, max(densities) * 1.1 or 1)
        drawn.axes.xaxis.get_major_locator().set_params(integer=True)
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
        for place, (name, nbytes) in enumerate(present):
            is_ours = (name, nbytes) == sizes[0]
            drawn.axes.barh(place, nbytes, color=ACCENT if is_ours else PALE, height=0.7)
            share = percent(nbytes / largest)
            text = f" {size(nbytes)}" + ("" if nbytes == largest else f", {share}")
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
