"""The pictures of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from figures import CHANCES
from plan import ALGORITHMS, NULL
from rlsparse_store.analysis.plots.figure import ACCENT, PALE, new_picture
from tables import (
    algorithm_overlaps,
    data_overlaps,
    null_overlaps,
    seed_overlaps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from figures import Figures, Overlap

__all__ = ["PICTURES"]

ORANGE: Final = "#d55e00"
GREEN: Final = "#009e73"
GREY: Final = "0.55"


def sparsity(figures: Figures) -> bytes:
    """Unchanged weights of every run, by algorithm."""
    labels = [*ALGORITHMS[:1], "grpo10", *ALGORITHMS[1:]]
    with new_picture(6.4, 3.0, "png") as picture:
        for y, label in enumerate(reversed(labels)):
            shares = [100 * figures.unchanged(name) for name in figures.names(label)]
            picture.axes.barh(y, sum(shares) / len(shares), color=PALE, height=0.7)
            picture.axes.plot(shares, [y] * len(shares), "o", color=ACCENT, markersize=4)
        picture.axes.set_yticks(range(len(labels)), list(reversed(labels)))
        picture.axes.set_xlim(0, 100)
        picture.axes.set_xlabel("weights unchanged, % (a dot for each seed and half of the data)")
        picture.set_title("weights left as they were, by algorithm and learning rate")
        return picture.to_bytes()


def magnitudes(figures: Figures) -> bytes:
    """Probability of a change by magnitude."""
    lines = (
        ("sft10-s0-d0", ORANGE, ".-"),
        ("sft-s0-d0", GREEN, ".-"),
        ("grpo-s0-d0", ACCENT, ".-"),
        # Without markers, since it coincides with the previous line.
        ("grpo-s0-d0" + NULL, PALE, "--"),
    )
    with new_picture(6.4, 3.2, "png") as picture:
        for name, color, style in lines:
            table = figures.values(name)["exponents"]
            points = [
                (2.0**exponent, 100 * changed / words)
                for exponent, changed, words in zip(
                    table["exponents"], table["changed"], table["words"], strict=True
                )
                if words >= MIN_WORDS
            ]
            picture.axes.plot(*zip(*points, strict=True), style, color=color, label=name)
        picture.axes.set_xscale("log", base=2)
        picture.axes.set_xlabel("magnitude of the base weight, from this power of two to the next")
        picture.axes.set_ylabel("of these, changed, %")
        picture.axes.legend(frameon=False, fontsize=8)
        picture.set_title("probability of a change, by the base's magnitude")
        return picture.to_bytes()


MIN_WORDS: Final = 100
"""Words of an exponent below which a changed share is too uncertain."""


def overlap(figures: Figures) -> bytes:
    """Overlaps of runs, with those expected by chance."""
    rows: list[tuple[str, list[Overlap]]] = [
        ("GRPO, other seed", seed_overlaps(figures, "grpo")),
        ("GRPO, other data", data_overlaps(figures, "grpo")),
        ("DPO, other seed", seed_overlaps(figures, "dpo")),
        ("DPO and GRPO", algorithm_overlaps(figures, "dpo", "grpo")),
        ("SFT and GRPO", algorithm_overlaps(figures, "sft", "grpo")),
        ("shuffled and GRPO", null_overlaps(figures, "grpo")),
    ]
    styles = (("uniform", "|", GREY), ("tensor", "x", GREY), ("magnitude", "s", ORANGE))
    with new_picture(6.4, 3.0, "png") as picture:
        for y, (_, overlaps) in enumerate(reversed(rows)):
            _mark(picture.axes, [o.one_sided for o in overlaps], y, "o", ACCENT)
            for kind, marker, color in styles:
                chance = [o.chance[CHANCES.index(kind)] for o in overlaps]
                _mark(picture.axes, chance, y, marker, color)
        for name, marker, color in (("shared", "o", ACCENT), *styles):
            label = name if name == "shared" else f"chance: {name}"
            picture.axes.plot([], [], marker, color=color, label=label)
        picture.axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
        picture.axes.set_ylim(-0.6, len(rows) - 0.4)
        picture.axes.set_xlim(0, 100)
        picture.axes.set_xlabel("of what one changed, the other changed, too, %; and by chance")
        picture.axes.legend(
            frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.2)
        )
        picture.set_title("what two runs share, and what chance gives")
        return picture.to_bytes()


def _mark(axes: Any, shares: Sequence[float], y: int, marker: str, color: str) -> None:  # noqa: ANN401
    axes.plot([100 * s for s in shares], [y] * len(shares), marker, color=color, markersize=6)


def series(figures: Figures) -> bytes:
    """Density over a longer run of GRPO."""
    (run,) = figures.labelled("grpo-long")
    report = figures.series(run.name)
    updates = round(figures.plan.updates * run.steps)
    x = [updates * n // run.checkpoints for n in range(1, run.checkpoints + 1)]
    with new_picture(6.4, 2.8, "png") as picture:
        from_base = [100 * step["density"] for step in report["steps"]]
        moved = [100 * step["moved"] / report["words"] for step in report["steps"]]
        picture.axes.plot(x, from_base, color=ACCENT, marker=".", label="from the base")
        picture.axes.plot(x, moved, color=ORANGE, marker=".", label="from the one before")
        picture.axes.set_ylim(0, None)
        picture.axes.set_xlim(0, None)
        picture.axes.set_xlabel("updates")
        picture.axes.set_ylabel("weights changed, %")
        picture.axes.legend(frameon=False, fontsize=8)
        picture.set_title("a longer run of GRPO")
        return picture.to_bytes()


PICTURES: Final[dict[str, Callable[[Figures], bytes]]] = {
    "sparsity": sparsity,
    "magnitudes": magnitudes,
    "overlap": overlap,
    "series": series,
}
