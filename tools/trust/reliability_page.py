#!/usr/bin/env python3
"""Write the tables of ``specs/reliability.md`` from the files of the rigs.

python tools/trust/reliability_page.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))

from result import RESULTS, ROOT, Result

__all__ = ["PAGE", "with_tables"]

PAGE: Final = ROOT / "specs" / "reliability.md"
_MARKED: Final = re.compile(
    r"(<!-- (rigs|faults): tools/trust/reliability_page\.py -->\n).*?(<!-- end of table -->)",
    re.DOTALL,
)


def with_tables(text: str, folder: Path = RESULTS) -> str:
    """The page with the tables that the files in a folder give."""
    results = [Result.read(path.stem, folder) for path in sorted(folder.glob("*.json"))]
    tables = {"rigs": _rigs(results), "faults": _faults(results)}
    return _MARKED.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", text)


def _rigs(results: list[Result]) -> str:
    """What each rig does, was asked for and reached."""
    lines = ["| rig | what it does | asked | reached | faults open | hours |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for result in results:
        total = result.totals()
        asked = "<br>".join(f"{number:,} {name}" for name, number in result.goal.items())
        reached = "<br>".join(f"{total[name]:,}" for name in result.goal)
        faults = sum(not fault.mended for fault in result.faults)
        cells = (result.rig, result.what, asked, reached, faults, f"{result.seconds() / 3600:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _faults(results: list[Result]) -> str:
    """What was found, and what holds it mended."""
    lines = ["| rig | found | mended |", "|---|---|---|"]
    for result in results:
        for fault in result.faults:
            what = fault.what.replace("|", "/")
            lines.append(f"| {result.rig} | {what} | {fault.mended or 'no'} |")
    return "\n".join(lines) if len(lines) > 2 else "None so far."


@click.command()
def main() -> None:
    """Write the tables of the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
