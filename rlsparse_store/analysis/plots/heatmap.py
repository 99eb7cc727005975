"""A heat map of densities by layer and kind of module."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.analysis.plots.figure import is_layer, label, new_picture
from rlsparse_store.delta.module_names import layer_of, module_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.plots.figure import ImageFormat
    from rlsparse_store.delta.report import DeltaReport

__all__ = ["density_map"]

MAX_MODULES: Final = 40
"""Rows of the picture, at most: the kinds of module with the most weights."""

ROW_HEIGHT: Final = 0.26
"""Height of a row in inches."""


def density_map(report: DeltaReport, image_format: ImageFormat = "png") -> bytes | None:
    """Draw densities by layer and kind of module.

    The same report and matplotlib give the same bytes.

    Args:
        report: Report of a delta.
        image_format: ``"png"`` or ``"svg"``.

    Returns:
        The image, or ``None`` if no layer has a number.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    layers, modules, cells = _cells(report)
    if not layers:
        return None
    width, height = min(11, 4 + 0.28 * len(layers)), 1.3 + ROW_HEIGHT * len(modules)
    with new_picture(width, height, image_format) as picture:
        from matplotlib.colors import PowerNorm  # noqa: PLC0415 - optional, slow to import

        axes = picture.axes
        # Square-root scale, since a few biases are often many times as dense as the matrices.
        image = axes.imshow(
            cells,
            aspect="auto",
            cmap=_color_map(),
            norm=PowerNorm(0.5, vmin=0, vmax=_max_density(cells)),
            interpolation="nearest",
        )
        step = 1 + (len(layers) - 1) // 24
        axes.set_xticks(range(0, len(layers), step), layers[::step])
        # Without parse_math, a dollar sign in a name is not a formula.
        axes.set_yticks(range(len(modules)), [label(m) for m in modules], parse_math=False)
        axes.set_xlabel("layer")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        picture.set_title("changed weights, %")
        bar = picture.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
        bar.outline.set_visible(False)
        return picture.to_bytes()


def _max_density(cells: Sequence[Sequence[float]]) -> float:
    """The largest density in percent; 1 if nothing changed, for a valid scale."""
    return max((cell for row in cells for cell in row if cell > 0), default=1.0)


def _color_map() -> Any:  # noqa: ANN401 - matplotlib's
    """A color map of rising darkness, legible in grayscale, with gray for missing cells."""
    import matplotlib as mpl  # noqa: PLC0415 - optional, slow to import

    return mpl.colormaps["YlGnBu"].with_extremes(bad="0.93")


def _cells(report: DeltaReport) -> tuple[list[str], list[str], Sequence[Sequence[float]]]:
    """Layers, kinds of module, and densities in percent, one row per kind of module."""
    elements: defaultdict[tuple[str, str], int] = defaultdict(int)
    changed: defaultdict[tuple[str, str], int] = defaultdict(int)
    for t in report.tensors:
        key = (module_of(t.name), layer_of(t.name))
        elements[key] += t.elements
        changed[key] += t.changed
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
    """The kinds of module with the most elements, in order of the checkpoint."""
    kept = set(sorted(sizes, key=lambda name: -sizes[name])[:MAX_MODULES])
    return [name for name in sizes if name in kept]
