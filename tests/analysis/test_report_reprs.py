"""Every public report of ``analysis`` has a short ``repr`` and an escaped HTML table."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from pairs import bf16_tensor, save, tune

import rlsparse_store.analysis
from rlsparse_store.analysis import (
    Measures,
    SharedTensor,
    compare_deltas,
    match_checkpoints,
    measure_series,
    measure_values,
    open_pair,
    write_mask,
)
from rlsparse_store.delta import encode_run
from rlsparse_store.delta.html_table import MAX_ROWS, SummaryRepr, html_table
from rlsparse_store.format.dtypes import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e\n" + "x" * 5000

REPORTS: list[Any] = [
    public
    for name in rlsparse_store.analysis.__all__
    if dataclasses.is_dataclass(public := getattr(rlsparse_store.analysis, name))
]


class Tags(HTMLParser):
    """Collects tags and checks that they are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert attrs == []
        self.names.add(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def hostile(kind: Any) -> Any:  # noqa: ANN401 - a type, and a value of it
    """A value of an annotated type, with hostile text and long lists in it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return hostile(next(argument for argument in arguments if argument is not NoneType))
    if origin is list:
        return [hostile(arguments[0])] * 500
    if origin is dict:
        return {f"{HOSTILE}{n}": hostile(arguments[1]) for n in range(500)}
    if kind in REPORTS:
        hints = get_type_hints(kind, {**vars(rlsparse_store.analysis), "np": np})
        return kind(**{name: hostile(hints[name]) for name in hints})
    return {str: HOSTILE, int: 10**30, float: 1 / 3, bool: True}[kind]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.__name__)
def test_hostile_reports(report: Any) -> None:  # noqa: ANN401 - any dataclass
    assert issubclass(report, SummaryRepr)
    shape = (10**30,) * 100
    by_hand = {
        Measures: Measures(words=10**30),
        SharedTensor: SharedTensor(
            HOSTILE, DTYPES["BF16"], shape, 1, 2, 3, shape, HOSTILE, "0", HOSTILE
        ),
    }
    assert_short_and_inert(by_hand[report] if report in by_hand else hostile(report))


def assert_short_and_inert(instance: object) -> None:
    line = repr(instance)
    assert line.startswith(f"{type(instance).__name__}(")
    assert line.endswith(")")
    assert len(line) <= 120
    assert line.isprintable()
    html = instance._repr_html_()  # type: ignore[attr-defined]
    assert Tags(html).names == {"table", "caption", "tr", "th", "td"}
    assert html.count("<tr>") <= MAX_ROWS + 1
    assert not {"\x1b", "\u202e", "\n"} & set(html)


def test_reprs_of_measurements(tmp_path: Path) -> None:
    name = "<script>.weight"
    base = {name: bf16_tensor(0, 30, 40)}
    save(tmp_path / "base", base)
    tuned = [save(tmp_path / f"s{seed}", {name: tune(base[name], seed, 0.25)}) for seed in range(2)]
    encode_run(tmp_path / "base", tuned, tmp_path / "run")
    with open_pair(tmp_path / "base", tuned[0]) as pair:
        values = measure_values(pair)
        assert repr(pair).startswith("Pair(path=")
        assert_short_and_inert(pair)
        assert repr(pair.tensors[name]).startswith("SharedTensor(name=<script>.weight, dtype=BF16")
    compared = compare_deltas([tmp_path / "run"], base=tmp_path / "base")
    assert compared.mean_jaccard is not None
    start = f"CompareReport(deltas=2, words=1200, mean_jaccard={compared.mean_jaccard:.4g}, "
    assert repr(compared).startswith(start)
    assert "<td>1,200</td>" in compared._repr_html_()
    series = measure_series([tmp_path / "run"], base=tmp_path / "base")
    match = match_checkpoints(tuned[0], tuned[1], base=tmp_path / "base")
    mask = write_mask([tmp_path / "run"], tmp_path / "mask", base=tmp_path / "base")
    for report in (values, compared, series, match, mask, values.exponents, *compared.pairs):
        assert_short_and_inert(report)
    assert "&lt;script&gt;" in mask._repr_html_()


def test_tables_are_cut() -> None:
    table = html_table("many", ((f"{n}", n) for n in range(1000)))
    assert "<td>39</td>" in table
    assert "<td>40</td>" not in table
    assert "<th>…</th><td>960 more</td>" in table
    assert html_table("none", []) == "<table><caption>none</caption></table>"
    assert "<td>None</td>" in html_table("undefined", [("jaccard", None)])
