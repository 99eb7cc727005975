"""The report: claims, tables, pictures, and the commands behind the numbers."""

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

INTRODUCTION = """# The papers' tables, reproduced on small runs

A Llama of {parameters:,} parameters is pretrained to add two numbers below 100. Half of its text
has the answers forward, half has them with reversed digits; every run starts from this base and
trains the forward notation. A run takes {updates} updates of {answers} answers at a learning rate
of {rate:g} (AdamW, no weight decay, gradients clipped at 1, float32 masters, stored in bfloat16),
for {seeds} seeds and two disjoint halves of the data. `tools/reproduce/reproduce.py OUT` repeats
all of it; rounding on other machines changes the figures slightly.

**What a model this small can show.** It shows mechanisms: the effects of rounding, of the learning
rate and of chance. It cannot show what large models do. The product of learning rate and number of
updates, relative to the median weight, was chosen close to that of published RL runs; the sparsity
of a run follows from this choice, so that only comparisons within a table are meaningful. The
subject is disputed: Balashov's preprint (arXiv 2507.17107) was withdrawn by its author, so
Mukherjee et al. (arXiv 2505.11711) are cited for the claims of both.

Every number comes from stored deltas, by the commands listed under its table, run in `OUT`;
`score.py` is `tools/reproduce/score.py`.
"""


def write_report(figures: Figures, out: Path) -> None:
    """Write ``report.md`` and its pictures.

    Args:
        figures: The figures.
        out: Folder to write to.
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
            figures.evidence.take_commands(),
        ),
    ]
    for new_table in TABLES:
        table = new_table(figures)
        if table.picture:
            (out / f"{table.picture}.png").write_bytes(PICTURES[table.picture](figures))
        parts.append(_section(table, figures.evidence.take_commands()))
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")


def _claims(claims: Sequence[Claim], commands: Sequence[str]) -> str:
    lines = ["## Published claims, and whether these runs agree", ""]
    lines += _rows(
        ["claim", "verdict"], [[f"{c.claim} ({c.source})", f"**{c.verdict}**"] for c in claims]
    )
    lines.append("")
    for claim in claims:
        lines += [f"**{claim.claim}** {claim.verdict.capitalize()}. {claim.finding}", ""]
        lines += [f"*Confounds:* {claim.confounds}", ""]
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
    lines = [f"    {command} --json" for command in commands]
    return [f"<details><summary>{count}</summary>", "", *lines, "", "</details>", ""]
