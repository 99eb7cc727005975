"""The pictures of the README and the documents: ``python tools/docs/drawings.py``.

Writes ``specs/images/NAME-light.svg`` and ``NAME-dark.svg``. The tests compare them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import click

from svg import Ink, Svg, Theme

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IMAGES", "PICTURES", "draw_all"]

IMAGES: Final = Path(__file__).parents[2] / "specs/images"

# A pretrained encoder of 22.7 M weights after 60 steps of GRPO at a learning rate of 1e-6: by
# exponent of the bfloat16 base weight, the weights and the changed ones. Smaller exponents hold
# 498 weights together. `rlsparse inspect BASE TUNED --json` prints such a table for any pair.
_FIRST_EXPONENT: Final = -22
_WEIGHTS: Final = (
    *(77, 178, 373, 715, 1457, 2896, 5790, 11690, 23433, 46527, 92134, 183995, 366649, 730625),
    *(1439370, 2751395, 4807504, 6549467, 4802214, 869286, 22139, 4750, 49),
)
_CHANGED: Final = (
    *(49, 81, 184, 345, 763, 1492, 3000, 6113, 12146, 23806, 45697, 87672, 160013, 249831),
    *(312011, 183831, 990, 0, 0, 0, 0, 0, 0),
)
# The same pair as files: the checkpoint, its XOR with the base through zstd, and the delta folder.
_SIZES: Final = (("tuned checkpoint", 45.43), ("XOR + zstd", 2.25), ("delta", 0.60))

_BASE_WORDS: Final = (
    ("3d10", "bf3a", "3c80", "be01", "3d55", "bb9e"),
    ("3e21", "3b07", "bd44", "3f02", "bc19", "3d8c"),
    ("bdc5", "3cf1", "3a6d", "be77", "3d09", "bb52"),
)
_TUNED_WORDS: Final = (
    ("3d10", "bf3a", "3c81", "be01", "3d55", "bb9c"),
    ("3e21", "3b09", "bd44", "3f02", "bc18", "3d8c"),
    ("bdc5", "3cf1", "3a64", "be77", "3d09", "bb53"),
)


def _words(svg: Svg, x: float, y: float, words: tuple[tuple[str, ...], ...]) -> None:
    """Rows of words in a box, the changed ones marked."""
    svg.box(x, y, 296, 84, "pale", edge="line")
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            left, top = x + 10 + 47 * column, y + 8 + 24 * row
            ink: Ink = "text"
            if word != _BASE_WORDS[row][column]:
                svg.box(left - 3, top, 42, 20, "pale_changed", edge="changed")
                ink = "changed"
            svg.text(left + 18, top + 15, word, ink, anchor="middle", mono=True)


def draw_delta(theme: Theme) -> Svg:
    """Base and tuned checkpoint, the delta between them, and their sizes to scale."""
    svg = Svg(
        *(860, 348),
        theme,
        "Base and tuned checkpoint differ in a few 16-bit words. The delta stores which words"
        " changed and by how many steps, in 0.6 MB instead of 45 MB.",
    )
    svg.text(10, 22, "base model", bold=True)
    _words(svg, 10, 32, _BASE_WORDS)
    svg.text(10, 148, "tuned checkpoint", bold=True)
    _words(svg, 10, 158, _TUNED_WORDS)
    svg.arrow(320, 137, 408, 137)
    svg.text(364, 127, "encode", "muted", anchor="middle")
    svg.text(420, 74, "delta", bold=True)
    svg.box(420, 84, 178, 106, "pale", edge="accent")
    holds = (
        "config, tokenizer",
        "which words changed",
        "and by how many steps,",
        "by exponent of the base",
    )
    for row, line in enumerate(holds):
        svg.text(432, 108 + 22 * row, line, "text" if row else "muted", size=12)
    svg.arrow(604, 137, 690, 137)
    svg.text(648, 127, "+ base", "muted", anchor="middle")
    for row, line in enumerate(("apply", "from_delta", "open_delta", "vLLM", "SGLang")):
        svg.text(704, 104 + 20 * row, line, "accent", mono=True)
    svg.text(704, 74, "the same bits", bold=True)
    svg.line(10, 262, 850, 262)
    _draw_sizes(svg)
    return svg


def _draw_sizes(svg: Svg) -> None:
    largest = _SIZES[0][1]
    for row, (name, megabytes) in enumerate(_SIZES):
        y = 272 + 24 * row
        length = 560 * megabytes / largest
        ours = name == "delta"
        svg.text(150, y + 13, name, anchor="end", bold=ours)
        svg.box(160, y + 1, length, 15, "accent" if ours else "line")
        svg.text(168 + length, y + 13, f"{megabytes:.1f} MB", "accent" if ours else "muted")


def draw_exponents(theme: Theme) -> Svg:
    """The share of changed weights by exponent of the base."""
    svg = Svg(
        *(860, 344),
        theme,
        "Share of changed weights by exponent of the base weight: about half of the weights below"
        " 2 to the minus 10 changed, and none above 2 to the minus 5.",
    )
    left, bottom, height, step = 60, 250, 200, 34
    for percent in (0, 20, 40, 60):
        y = bottom - height * percent / 65
        svg.line(left, y, left + step * len(_WEIGHTS), y)
        svg.text(left - 8, y + 4, f"{percent} %", "muted", size=12, anchor="end")
    for column, (weights, changed) in enumerate(zip(_WEIGHTS, _CHANGED, strict=True)):
        x = left + step * column
        size = height * 100 * changed / weights / 65
        svg.box(x + 5, bottom - size, step - 10, size, "changed")
        if column % 2 == 0:
            exponent = f"{_FIRST_EXPONENT + column}".replace("-", "−")
            svg.text(x + step / 2, bottom + 18, exponent, "muted", size=12, anchor="middle")
    largest, floor = max(_WEIGHTS), bottom + 82
    for column, weights in enumerate(_WEIGHTS):
        size = 42 * weights / largest
        svg.box(left + step * column + 5, floor - size, step - 10, size, "accent")
    svg.line(left, floor, left + step * len(_WEIGHTS), floor)
    svg.text(left, 24, "changed weights, % of those with this exponent", bold=True)
    svg.text(left, bottom + 40, "exponent of the base weight (a power of two)", "muted", size=12)
    svg.text(left, floor - 8, "all weights", bold=True)
    return svg


def draw_chunk(theme: Theme) -> Svg:
    """How the words of a chunk become streams."""
    svg = Svg(
        *(860, 300),
        theme,
        "A chunk: base words are classed into contexts by exponent. Per context, a mask says which"
        " words changed; signs, classes and remainders say by how many steps. One zstd frame.",
    )
    base = ("3c80", "be01", "3a6d", "bf3a", "3b07", "3d55", "bb52", "3cf1")
    tuned = ("3c81", "be01", "3a64", "bf3a", "3b09", "3d55", "bb53", "3cf1")
    contexts = (1, 2, 0, 2, 0, 2, 0, 1)
    inks: tuple[Ink, ...] = ("changed", "accent", "muted")
    svg.text(10, 22, "1  words of base and tuned, classed by the base’s exponent", bold=True)
    for column, (before, after, context) in enumerate(zip(base, tuned, contexts, strict=True)):
        x = 90 + 62 * column
        svg.box(x, 34, 54, 24, "pale", edge=inks[context])
        svg.text(x + 27, 51, before, anchor="middle", mono=True)
        is_changed = before != after
        svg.box(x, 64, 54, 24, "pale_changed" if is_changed else "pale")
        svg.text(x + 27, 81, after, "changed" if is_changed else "text", anchor="middle", mono=True)
    svg.text(80, 51, "base", "muted", anchor="end")
    svg.text(80, 81, "tuned", "muted", anchor="end")
    svg.text(10, 122, "2  per context: a mask of what changed, and the steps", bold=True)
    rows: tuple[tuple[str, str, str, Ink], ...] = (
        ("context 0, small weights", "1 1 1", "−9  +2  −1", "changed"),
        ("context 1", "1 0", "+1", "accent"),
        ("the rest, large weights", "no change: nothing is stored", "", "muted"),
    )
    for row, (name, mask, steps, ink) in enumerate(rows):
        y = 134 + 26 * row
        svg.box(90, y, 12, 12, ink)
        svg.text(112, y + 11, name)
        svg.text(320, y + 11, mask, "text" if steps else "muted", mono=bool(steps))
        svg.text(460, y + 11, steps, mono=True)
    svg.text(10, 232, "3  one zstd frame of streams, with its own statistics for each", bold=True)
    x = 90
    for name, width in (("masks", 200), ("signs", 80), ("classes", 190), ("remainders", 120)):
        svg.box(x, 244, width, 28, "pale", edge="line")
        svg.text(x + width / 2, 263, name, anchor="middle")
        x += width + 4
    svg.text(90, 292, "+ checksums of the stored bytes, the base words and the result", "muted")
    return svg


def draw_layers(theme: Theme) -> Svg:
    """The rooms of the package from top to bottom, as the import contract has them."""
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    contracts = tomllib.loads(pyproject.read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    contract = next(item for item in contracts if item["type"] == "layers")
    layers = [[room.strip(" ()") for room in line.split("|")] for line in contract["layers"]]
    svg = Svg(
        *(860, 40 + 44 * len(layers)),
        theme,
        "Layers of the package, imports pointing down: " + "; ".join(map(", ".join, layers)),
    )
    svg.arrow(30, 30, 30, 10 + 44 * len(layers))
    svg.text(10, 20, "imports", "muted", size=12)
    for row, rooms in enumerate(layers):
        width = (760 - 8 * (len(rooms) - 1)) / len(rooms)
        for column, room in enumerate(rooms):
            x, y = 80 + (width + 8) * column, 20 + 44 * row
            svg.box(x, y, width, 34, "pale", edge="accent")
            svg.text(x + width / 2, y + 22, room, anchor="middle", mono=True)
    return svg


PICTURES: Final[dict[str, Callable[[Theme], Svg]]] = {
    "chunk": draw_chunk,
    "delta": draw_delta,
    "exponents": draw_exponents,
    "layers": draw_layers,
}


def draw_all() -> dict[str, str]:
    """All pictures, by file name."""
    return {
        f"{name}-{theme}.svg": str(draw(theme))
        for name, draw in PICTURES.items()
        for theme in get_args(Theme)
    }


@click.command(help=__doc__)
def main() -> None:
    """Write the pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, text in draw_all().items():
        (IMAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
