"""A heat map: how much of each kind of module changed in each layer."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.analysis.plots.figure import is_layer, label, picture
from rlsparse_store.delta.module_names import layer_of, module_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rlsparse_store.delta.report import DeltaReport

__all__ = ["density_map"]

MOST_MODULES: Final = 40
"""Rows of the picture: the kinds of module with the most weights."""

ROW: Final = 0.26
"""Inches per row."""


def density_map(report: DeltaReport, form: str = "png") -> bytes | None:
    """Draw densities by layer and kind of module.

    The same report gives the same bytes with the same matplotlib.

    Args:
        report: A delta's report.
        form: ``"png"`` or ``"svg"``.

    Returns:
        The picture, or ``None`` if nothing lies in layers, so that there is no map to draw.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    layers, modules, cells = _cells(report)
    if not layers:
        return None
    with picture(min(11, 4 + 0.28 * len(layers)), 1.3 + ROW * len(modules), form) as drawn:
        from matplotlib.colors import PowerNorm  # noqa: PLC0415 - only when something is drawn

        axes = drawn.axes
        # By the square root: a few biases often change many times as much as the matrices.
        image = axes.imshow(
            cells,
            aspect="auto",
            cmap=_colours(),
            norm=PowerNorm(0.5, vmin=0, vmax=_largest_cell(cells)),
            interpolation="nearest",
        )
        step = 1 + (len(layers) - 1) // 24
        axes.set_xticks(range(0, len(layers), step), layers[::step])
        # parse_math: a dollar sign in a name is no formula.
        axes.set_yticks(range(len(modules)), [label(m) for m in modules], parse_math=False)
        axes.set_xlabel("layer")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        drawn.titled("changed weights, %")
        bar = drawn.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
        bar.outline.set_visible(False)
        return drawn.saved()


def _largest_cell(cells: Sequence[Sequence[float]]) -> float:
    """The largest percentage, or one where nothing changed, so that there is a scale."""
    return max((cell for row in cells for cell in row if cell > 0), default=1.0)


def _colours() -> Any:  # noqa: ANN401 - matplotlib's
    """From pale to dark, so that the map reads in grey, too; what is not there is grey."""
    import matplotlib as mpl  # noqa: PLC0415 - as above

    return mpl.colormaps["YlGnBu"].with_extremes(bad="0.93")


def _cells(report: DeltaReport) -> tuple[list[str], list[str], Sequence[Sequence[float]]]:
    """Layers, kinds of module, and the density in percent of each module (row) and layer."""
    elements: defaultdict[tuple[str, str], int] = defaultdict(int)
    changed: defaultdict[tuple[str, str], int] = defaultdict(int)
    for t in report.tensors:
        place = (module_of(t.name), layer_of(t.name))
        elements[place] += t.elements
        changed[place] += t.changed
    numbered = {layer for _, layer in elements if is_layer(layer)}
    layers = sorted(numbered, key=int)
    modules = _largest({m: _sum(elements, m) for m, layer in elements if layer in numbered})
    missing = float("nan")
    return (
        layers,
        modules,
        [
            [
                100 * changed[m, layer] / elements[m, layer]
                if elements.get((m, layer))
                else missing
                for layer in layers
            ]
            for m in modules
        ],
    )


def _sum(elements: dict[tuple[str, str], int], module: str) -> int:
    return sum(count for (name, _), count in elements.items() if name == module)


def _largest(sizes: dict[str, int]) -> list[str]:
    """The largest kinds of module, in the order in which they stand in the checkpoint."""
    kept: Iterable[str] = sorted(sizes, key=lambda name: -sizes[name])[:MOST_MODULES]
    kept = set(kept)
    return [name for name in sizes if name in kept]
