"""Representations of reports and open deltas: a short repr, and an HTML table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pairs import bf16_tensor, save, tune

from rlsparse_store import (
    apply_delta,
    encode_delta,
    encode_run,
    inspect_delta,
    inspect_run,
    open_delta,
    verify_delta,
)

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script>"


def test_reports_have_a_short_repr_and_an_html_table(tmp_path: Path) -> None:
    base = {f"model.layers.{n}.{HOSTILE}.weight": bf16_tensor(n, 40, 40) for n in range(60)}
    b = save(tmp_path / "base", base)
    t = save(tmp_path / "tuned", {name: tune(tensor, 7) for name, tensor in base.items()})
    encoded = encode_delta(b, t, tmp_path / "delta")
    inspected = inspect_delta(tmp_path / "delta")
    run = encode_run(b, [t], tmp_path / "run")
    shown: list[object] = [
        encoded,
        inspected,
        inspected.tensors[0],
        inspected.modules[0],
        run,
        inspect_run(tmp_path / "run"),
        run.deltas[0],
        apply_delta(tmp_path / "delta", tmp_path / "out", base=b),
        verify_delta(tmp_path / "delta", base=b),
    ]
    for report in shown:
        line = repr(report)
        assert line.startswith(f"{type(report).__name__}(")
        assert "\n" not in line
        assert len(line) <= 120
        table = report._repr_html_()  # type: ignore[attr-defined]
        assert table.startswith("<table>")
        assert "<script" not in table
    assert f"density={inspected.density:.4g}" in repr(inspected)
    with open_delta(tmp_path / "delta", base=b, framework="bits") as opened:
        assert repr(opened).endswith(f"base={str(b)!r}, 60 tensors)")
        assert "<script" not in opened._repr_html_()
        assert "BF16 [40, 40], delta" in opened._repr_html_()
