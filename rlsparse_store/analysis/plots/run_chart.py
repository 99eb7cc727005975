"""A chart of a run: one value of its entries over the steps of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.analysis.plots.figure import ACCENT, label, new_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.plots.figure import ImageFormat

__all__ = ["value_over_steps"]


def value_over_steps(
    steps: Sequence[int],
    values: Sequence[float],
    what: str,
    image_format: ImageFormat = "png",
    *,
    unit: str = "",
) -> bytes | None:
    """Draw a value of a run's entries over their steps.

    Args:
        steps: Optimizer steps, or places in the run, ascending.
        values: The value at each of them.
        what: What it is. It may be an untrusted name.
        image_format: ``"png"`` or ``"svg"``.
        unit: Its unit, if it has one.

    Returns:
        The image, or ``None`` without values.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if not values:
        return None
    with new_picture(6.4, 3.2, image_format) as picture:
        # A float can hold any step that is drawn: a picture has no room for 16 digits.
        picture.axes.plot(list(map(float, steps)), list(values), color=ACCENT, marker="o", ms=3)
        picture.axes.set_xlabel("step")
        name = label(what)
        picture.axes.set_ylabel(f"{name}, {unit}" if unit else name, parse_math=False)
        picture.axes.grid(axis="y", color="0.92")
        picture.set_title(f"{name} over the run")
        return picture.to_bytes()
