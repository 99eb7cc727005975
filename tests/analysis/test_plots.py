"""Pictures and the page: reproducible bytes, and inert hostile names."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import matplotlib as mpl
import pytest
from pairs import bf16_tensor, save, tune

from rlsparse_store.analysis.plots.charts import (
    _axis_positions,
    _consecutive_runs,
    change_by_exponent,
    density_by_depth,
    size_comparison,
    step_histogram,
)
from rlsparse_store.analysis.plots.figure import ACCENT
from rlsparse_store.analysis.plots.heatmap import density_map
from rlsparse_store.analysis.plots.page import write_page
from rlsparse_store.delta import encode_delta, inspect_delta
from rlsparse_store.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlsparse_store.analysis.plots.figure import ImageFormat

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img onerror=x>',
    "$x$",
    "a\x1b[2Jb",
    "\u202eabc",
    "层\u200b",
]

CHARTS: dict[str, Callable[[ImageFormat], bytes | None]] = {
    "steps": lambda image_format: step_histogram(["-1", "+1", "+2"], [5, 0, 7], image_format),
    "exponents": lambda image_format: change_by_exponent(
        [-9, -8, -7], [5, 90, 10], [5, 9, 0], image_format
    ),
    "depth": lambda image_format: density_by_depth(
        [("0", 10, 1), ("10", 10, 0), ("other", 9, 9)], image_format
    ),
    "sizes": lambda image_format: size_comparison(
        [("ours", 10), *((n, 99) for n in HOSTILE)], image_format
    ),
}


@pytest.mark.parametrize("form", ["png", "svg"])
@pytest.mark.parametrize("name", CHARTS)
def test_same_input_same_bytes(name: str, form: ImageFormat) -> None:
    first = CHARTS[name](form)
    assert first is not None
    assert first == CHARTS[name](form)
    assert first.startswith(b"\x89PNG" if form == "png" else b"<?xml")


def test_nothing_to_draw() -> None:
    assert step_histogram(["-1", "+1"], [0, 0]) is None
    assert change_by_exponent([], [], []) is None
    assert density_by_depth([("other", 5, 1)]) is None
    assert size_comparison([("ours", 0)]) is None
    assert density_by_depth([("0", 5, 0)]) is not None
    assert step_histogram(["+1"], [1]) is not None


def test_long_layer_numbers_are_ignored() -> None:
    without = density_by_depth([("0", 10, 1)])
    for name in ("9" * 400, "9" * 5000, "᠓", "²"):
        assert density_by_depth([("0", 10, 1), (name, 10, 1)]) == without


def test_zeros_are_drawn_apart() -> None:
    near = change_by_exponent([-9, -8, -7], [5, 90, 10], [5, 9, 0])
    separate = change_by_exponent([-127, -9, -8, -7], [5, 5, 90, 10], [0, 5, 9, 0])
    farther = change_by_exponent([-127, -19, -18, -17], [5, 5, 90, 10], [0, 5, 9, 0])
    assert len({near, separate, farther}) == 3
    assert _axis_positions([[-127], [-9, -8]]) == {-127: -127, -9: -124, -8: -123}
    assert _consecutive_runs([-127, -9, -8]) == [[-127], [-9, -8]]
    assert change_by_exponent([-9, -8], [9, 9], [9, 0], half=0.003) != change_by_exponent(
        [-9, -8], [9, 9], [9, 0]
    )


@pytest.mark.parametrize(
    ("sizes", "highlighted"),
    [([("b", 9), ("b", 9)], 1), ([("a", 0), ("b", 9)], 0), ([("a", 1), ("b", 9)], 1)],
)
def test_only_the_first_size_is_highlighted(sizes: list[tuple[str, int]], highlighted: int) -> None:
    image = size_comparison(sizes, "svg")
    assert image is not None
    assert image.count(ACCENT.encode()) == highlighted


@pytest.mark.parametrize("name", CHARTS)
def test_user_styles_are_ignored(name: str) -> None:
    plain = CHARTS[name]("png")
    # With usetex, names would run as LaTeX.
    style = {"text.usetex": True, "axes.facecolor": "black", "lines.linewidth": 9.0}
    with mpl.rc_context(style):  # type: ignore[arg-type]
        before = dict(mpl.rcParams)
        assert CHARTS[name]("png") == plain
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("form", ["png", "svg"])
def test_map_with_hostile_names(tmp_path: Path, form: ImageFormat) -> None:
    names = [f"model.layers.{n}.{name}.weight" for n in range(2) for name in HOSTILE[:3]]
    names += ["model.layers.0.层.weight", f"model.layers.{'9' * 400}.a.weight"]
    names.append("model.layers.᠓.a.weight")
    base = {name: bf16_tensor(n, 16, 16) for n, name in enumerate(names)}
    tuned = {name: tune(tensor, 1, 0.2) for name, tensor in base.items()}
    encode_delta(save(tmp_path / "b", base), save(tmp_path / "t", tuned), tmp_path / "d")
    report = inspect_delta(tmp_path / "d")
    image = density_map(report, form)
    assert image is not None
    assert b"<script" not in image
    assert image == density_map(report, form)


def test_format_and_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="image_format='gif': choose one of png, svg"):
        CHARTS["steps"]("gif")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[plot\]'"):
        CHARTS["steps"]("png")


class Balance(HTMLParser):
    """Collects tags and links, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in {"src", "href"}:
                self.sources.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_inert() -> None:
    rows = [[name, name] for name in HOSTILE]
    facts = [(name, name) for name in HOSTILE]
    page = write_page(HOSTILE[0], facts, [(HOSTILE[1], HOSTILE[:2], rows)], [(HOSTILE[1], b"png")])
    parsed = Balance()
    parsed.feed(page)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert parsed.sources == ["data:image/png;base64,cG5n"]
    assert not re.search(r"https?:|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_page_aligns_numbers_and_keeps_svg_an_image() -> None:
    rows = [["a", "1,000", "BF16", "≤ 5 %"], ["b", "", "F32", "0 %"]]
    svg = CHARTS["sizes"]("svg")
    assert svg is not None
    page = write_page("t", [], [("T", ["", "n", "dtype", "share"], rows)], [("p", svg)])
    assert page.count("<svg") == 0
    assert "data:image/svg+xml;base64," in page
    assert '<th scope="col" class="n">n</th><th scope="col">dtype</th>' in page
    assert '<td>BF16</td><td class="n">≤ 5 %</td>' in page
    assert '<th scope="col"></th>' not in page


def test_command_writes_pictures_and_page(tmp_path: Path) -> None:
    base = {f"model.layers.{n}.mlp.up_proj.weight": bf16_tensor(n, 50, 60) for n in range(3)}
    tuned = {name: tune(tensor, 1, 0.1) for name, tensor in base.items()}
    b, t = save(tmp_path / "b", base), save(tmp_path / "t", tuned)
    command = [sys.executable, "-P", "-m", "rlsparse_store", "inspect", str(b), str(t)]
    options = ["--plot", str(tmp_path / "pictures"), "--report", str(tmp_path / "page.html")]
    first = subprocess.run([*command, *options], capture_output=True, check=False, text=True)
    assert first.returncode == 0
    assert first.stderr == f"wrote {options[1]}\nwrote {options[3]}\n"
    names = {"map", "depth", "steps", "exponents", "sizes"}
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == names
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(names)
    assert "9,000" in page
    again = subprocess.run([*command, *options], capture_output=True, check=False, text=True)
    assert again.returncode == 1, "existing files are not overwritten"
    assert (
        again.stderr
        == f"rlsparse: {options[3]}: exists already; remove it or choose another place\n"
    )
    again = subprocess.run([*command, *options[:2]], capture_output=True, check=False, text=True)
    assert again.returncode == 1
    assert again.stderr == (
        f"rlsparse: {options[1]}/map.png: exists already; remove it or choose another place\n"
    )
