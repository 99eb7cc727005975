"""The report: claims, tables, pictures, and the command behind every number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pictures import PICTURES
from sparsity_claims import SPARSITY_CLAIMS
from subnetwork_claims import SUBNETWORK_CLAIMS
from tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from claims import Claim
    from figures import Figures
    from tables import Table

__all__ = ["write_report"]

INTRODUCTION = """# The papers' tables, on runs of our own

A Llama of {parameters:,} parameters learned to add two numbers below 100 from two writers, one of
whom writes answers backward; every run starts from it and brings out the other one. A run takes
{updates} updates of {answers} answers at a learning rate of {rate:g} (AdamW, no decay, gradients
clipped at 1, float32 masters, stored in bfloat16), over {seeds} seeds and two halves of the data
that share no sum. `tools/reproduce/reproduce.py OUT` makes all of it again; elsewhere arithmetic is
rounded differently, and figures differ a little.

**What such a toy can and cannot say.** It shows mechanisms: what rounding, the learning rate and
chance do. It cannot show what large models do. Learning rate and number of updates were chosen so
that their product is to the median weight about as in published RL runs; how sparse a run is
follows from that choice, and only comparisons within a table mean something. The subject is
disputed: Balashov's preprint (arXiv 2507.17107) was withdrawn by its author, so Mukherjee et al.
(arXiv 2505.11711) stand for what both claim.

Every number comes from stored deltas, by the commands listed under its table, run in `OUT`;
`score.py` is `tools/reproduce/score.py`.
"""


def write_report(figures: Figures, out: Path) -> None:
    """Write ``report.md`` and its pictures.

    Args:
        figures: The numbers.
        out: The folder to write into.
    """
    plan = figures.plan
    first = figures.report(figures.names("grpo")[0])
    parts = [
        INTRODUCTION.format(
            parameters=first["elements"],
            updates=plan.updates,
            answers=plan.answers,
            rate=plan.learning_rate,
            seeds=plan.seeds,
        ),
        _claims(
            [claim(figures) for claim in (*SPARSITY_CLAIMS, *SUBNETWORK_CLAIMS)],
            figures.evidence.asked(),
        ),
    ]
    for make in TABLES:
        table = make(figures)
        if table.picture:
            (out / f"{table.picture}.png").write_bytes(PICTURES[table.picture](figures))
        parts.append(_section(table, figures.evidence.asked()))
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")


def _claims(claims: Sequence[Claim], commands: Sequence[str]) -> str:
    lines = ["## What was published, and what these runs say", ""]
    lines += _rows(
        ["claim", "verdict"], [[f"{c.claim} ({c.source})", f"**{c.verdict}**"] for c in claims]
    )
    lines.append("")
    for claim in claims:
        lines += [f"**{claim.claim}** {claim.verdict.capitalize()}. {claim.finding}", ""]
        lines += [f"*What else could explain it:* {claim.confounds}", ""]
    return "\n".join([*lines, *_commands(commands)])


def _section(table: Table, commands: Sequence[str]) -> str:
    lines = [f"## {table.title}", "", table.about, ""]
    lines += _rows(table.head, table.rows)
    if table.picture:
        lines += ["", f"![{table.title}]({table.picture}.png)"]
    return "\n".join([*lines, "", *_commands(commands)])


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _commands(commands: Sequence[str]) -> list[str]:
    count = "1 command" if len(commands) == 1 else f"{len(commands)} commands"
    listed = [f"    {command} --json" for command in commands]
    return [f"<details><summary>{count}</summary>", "", *listed, "", "</details>", ""]
