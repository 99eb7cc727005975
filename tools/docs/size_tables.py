"""The tables of sizes and speeds in the README and the documents, from what was measured last.

``python tools/docs/size_tables.py`` writes each between its two marks; the tests compare them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import click

__all__ = ["PLACES", "with_table"]

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "tools/bench/results/results.json"

Json = dict[str, Any]

_OURS: Final = "rlsparse_store"
_FEW: Final = (_OURS, "pcodec gaps + steps", "XOR + zstd-1", "int32 + bf16")
_NAMES: Final = {
    _OURS: "**rlsparse_store**",
    "pcodec gaps + steps": "pcodec on gaps and steps",
    "gap + XOR + zstd-1": "gaps, XOR and zstd (NeMo-RL)",
    "XOR + zstd-1": "XOR and zstd (slime, SkyRL)",
    "int32 + bf16": "int32 and bf16 (TRL, vLLM, verl)",
    "PULSE v3.1": "PULSE v3.1 (grail)",
    "lmzip append": "lmzip",
    "z4ai delta": "z4ai",
    "arc_v3, patient": "arc_v3 (Fireworks), waiting for its best",
}
_AT_A_GLANCE: Final = {"grpo-lr1e-6-step60": "4.8 %", "generated, 28 %": "28 %"}
_ALL: Final = ("generated, 2 %", "generated, 9 %", "generated, 28 %", "generated, 50 %")


def _row(results: Json, entry: str, codec: str) -> Json:
    """What was measured of a codec on an input."""
    found: Json = next(item for item in results["inputs"] if item["name"] == entry)
    return next(row for row in found["results"] if row["codec"] == codec)


def _share(row: Json, operation: str) -> float:
    """Speed as a part of that of memcpy of the same weights in the same process."""
    return float(row["memcpy_seconds"] / row[operation]["seconds"])


def _percent(share: float) -> str:
    if share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0095 else f"{100 * share:.1f} %"


def _at_a_glance(results: Json) -> str:
    """Times smaller, and speeds, of four codecs at two densities."""
    columns = [
        column
        for percent in _AT_A_GLANCE.values()
        for column in (f"{percent} changed: smaller by", "encode", "decode")
    ]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for codec in _FEW:
        cells = []
        for entry in _AT_A_GLANCE:
            row = _row(results, entry, codec)
            smaller = 2 * row["words"] / row["nbytes"]
            cells.append(f"{smaller:.0f} ×" if smaller >= 9.95 else f"{smaller:.1f} ×")
            cells += [_percent(_share(row, operation)) for operation in ("encode", "decode")]
        if codec == _OURS:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {_NAMES[codec]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _in_full(results: Json) -> str:
    """Bytes per changed weight, and speeds, of the named codecs at four densities."""
    heads = [name.removeprefix("generated, ") + " changed" for name in _ALL]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    sizes = {codec: _row(results, _ALL[2], codec) for codec in _NAMES}
    for codec in sorted(_NAMES, key=lambda name: sizes[name]["nbytes"] / sizes[name]["changed"]):
        cells = []
        for entry in _ALL:
            row = _row(results, entry, codec)
            speeds = (_percent(_share(row, operation)) for operation in ("encode", "decode"))
            cells.append(" · ".join([f"{row['nbytes'] / row['changed']:.2f}", *speeds]))
        lines.append(f"| {_NAMES[codec]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PLACES: Final = {"README.md": _at_a_glance, "specs/benchmarks.md": _in_full}
"""What writes the table of each page."""


def with_table(page: str) -> str:
    """The text of a page with its table as measured last."""
    table = PLACES[page](json.loads(RESULTS.read_text(encoding="utf-8")))
    text = (ROOT / page).read_text(encoding="utf-8")
    marked = r"(<!-- table: tools/docs/size_tables.py -->\n).*?(<!-- end of table -->)"
    return re.sub(marked, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text, flags=re.DOTALL)


@click.command(help=__doc__)
def main() -> None:
    """Write the tables."""
    for page in PLACES:
        (ROOT / page).write_text(with_table(page), encoding="utf-8")


if __name__ == "__main__":
    main()
