"""What all pictures share: a figure of their own, one look, and bytes that stay the same."""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ACCENT", "PALE", "Picture", "is_layer", "label", "picture"]

ACCENT: Final = "#1f5a87"
PALE: Final = "#c9d4dc"

FORMATS: Final = ("png", "svg")

_LOOK: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.6",
    "axes.axisbelow": True,
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    # Ids in an SVG come from this, and not from chance.
    "svg.hashsalt": "rlsparse",
}

# What the font that comes with matplotlib has for certain.
_DRAWN: Final = re.compile(r"[^\x20-\x7e\u00a1-\u017f\u2026]")


# Longer numbers are no model's: they would not fit a picture, or even a float.
_LAYER: Final = re.compile(r"[0-9]{1,6}")


def is_layer(name: str) -> bool:
    """Whether a layer's name is a number that a picture can place.

    Example:
        >>> is_layer("12"), is_layer("other"), is_layer("9" * 400)
        (True, False, False)
    """
    return _LAYER.fullmatch(name) is not None


def label(name: str, most: int = 40) -> str:
    """A foreign name as a figure can draw it.

    Example:
        >>> label("层.weight")
        '?.weight'
    """
    return _DRAWN.sub("?", printable(name, most))


class Picture:
    """One picture being drawn.

    Attributes:
        axes: matplotlib's axes.
    """

    def __init__(self, figure: Any, axes: Any, form: str) -> None:  # noqa: ANN401 - matplotlib's
        self.axes = axes
        self.figure = figure
        self._form = form

    def titled(self, title: str) -> None:
        """Say what is seen."""
        self.axes.set_title(title, loc="left", fontsize=10)

    def saved(self) -> bytes:
        """The bytes of the picture: the same for the same picture, with the same matplotlib."""
        out = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}}
        if self._form == "png":
            options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}, "dpi": 90}
        self.figure.savefig(out, format=self._form, **options)
        return out.getvalue()


@contextmanager
def picture(width: float, height: float, form: str) -> Iterator[Picture]:
    """A figure of its own, which leaves the process's plots and its back end alone.

    Args:
        width: Inches.
        height: Inches.
        form: ``"png"`` or ``"svg"``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ValueError: The format is unknown.
    """
    if form not in FORMATS:
        msg = f"format {form!r}: choose one of {', '.join(FORMATS)}"
        raise ValueError(msg)
    try:
        from matplotlib import style  # noqa: PLC0415 - only when something is drawn
        from matplotlib.figure import Figure  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        msg = "matplotlib is not installed; install rlsparse-store[plot]"
        raise MissingDependencyError(msg) from error
    # Not over the user's own style: pictures would differ by it, and with ``text.usetex`` LaTeX
    # would run whatever a foreign name says.
    with style.context(["default", _LOOK]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield Picture(figure, figure.add_subplot(), form)
