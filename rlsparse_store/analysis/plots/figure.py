"""The figure under every picture: one style, and reproducible bytes."""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.format.names import printable
from rlsparse_store.installing import install_command

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ACCENT", "PALE", "ImageFormat", "Picture", "is_layer", "label", "new_picture"]

ACCENT: Final = "#1f5a87"
PALE: Final = "#c9d4dc"

ImageFormat: TypeAlias = Literal["png", "svg"]

_STYLE: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.6",
    "axes.axisbelow": True,
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    # Makes the ids in an SVG reproducible.
    "svg.hashsalt": "rlsparse",
}

# Characters outside of what the font of matplotlib certainly has.
_MISSING_GLYPHS: Final = re.compile(r"[^\x20-\x7e\u00a1-\u017f\u2026]")


# No model has longer numbers. They would not fit into a picture, nor into a float.
_LAYER: Final = re.compile(r"[0-9]{1,6}")


def is_layer(name: str) -> bool:
    """Whether the name of a layer is a number that fits on an axis.

    Example:
        >>> is_layer("12"), is_layer("other"), is_layer("9" * 400)
        (True, False, False)
    """
    return _LAYER.fullmatch(name) is not None


def label(name: str, max_length: int = 40) -> str:
    """An untrusted name in characters that the font has.

    Example:
        >>> label("层.weight")
        '?.weight'
    """
    return _MISSING_GLYPHS.sub("?", printable(name, max_length))


class Picture:
    """A picture to draw on.

    Attributes:
        figure: The figure of matplotlib.
        axes: Its axes.
    """

    def __init__(self, figure: Any, image_format: ImageFormat) -> None:  # noqa: ANN401 - matplotlib
        self.figure = figure
        self.axes = figure.add_subplot()
        self._format = image_format

    def set_title(self, title: str) -> None:
        """Set the title above the axes."""
        # Names in it may be untrusted, and are no formulas.
        self.axes.set_title(title, loc="left", fontsize=10, parse_math=False)

    def to_bytes(self) -> bytes:
        """The encoded image. The same drawing and matplotlib give the same bytes."""
        out = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}}
        if self._format == "png":
            options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}, "dpi": 90}
        self.figure.savefig(out, format=self._format, **options)
        return out.getvalue()


@contextmanager
def new_picture(width: float, height: float, image_format: ImageFormat) -> Iterator[Picture]:
    """A new picture, independent of pyplot's figures, backend and style.

    Args:
        width: Width in inches.
        height: Height in inches.
        image_format: ``"png"`` or ``"svg"``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ValueError: The format is unknown.
    """
    if image_format not in (formats := get_args(ImageFormat)):
        msg = f"image_format={image_format!r}: choose one of {', '.join(formats)}"
        raise ValueError(msg)
    try:
        from matplotlib import style  # noqa: PLC0415 - optional, slow to import
        from matplotlib.figure import Figure  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        msg = f"matplotlib is not installed: {install_command('plot')}"
        raise MissingDependencyError(msg) from error
    # The user's style would change the bytes, and its ``text.usetex`` would run names as LaTeX.
    with style.context(["default", _STYLE]):
        yield Picture(Figure(figsize=(width, height), layout="constrained"), image_format)
