#!/usr/bin/env python3
"""Print the share of held-out sums that stored models get right.

    python tools/reproduce/score.py --base base grpo-s0-d0 sft-s0-d0

Each model is read from its delta and the base, so what is scored is what is stored: bfloat16,
unless a run was stored in float32. Answers are greedy. The base itself is listed first.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from problem import held_out
from rlsparse_store.demo.policy import greedy_answers, load, token_ids
from rlsparse_store.demo.task import reward
from training import quietly, stored_weights

__all__ = ["scores"]


def scores(folder: Path, base: str, names: list[str]) -> dict[str, float]:
    """The share of held-out sums that the base and some of its runs get right.

    Args:
        folder: Where they are.
        base: The base's name there.
        names: Names of the runs.
    """
    prompts = [problem.prompt for problem in held_out()]
    with quietly():
        policy = load(folder / base)
        found = {}
        for name in [base, *names]:
            if name != base:
                policy.load_state_dict(stored_weights(folder, name, base))
            texts = greedy_answers(policy, token_ids(prompts)).texts()
            found[name] = sum(map(reward, prompts, texts)) / len(prompts)
    return found


@click.command()
@click.argument("names", nargs=-1, metavar="DELTA...")
@click.option("--base", required=True, help="The base.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(names: tuple[str, ...], base: str, *, as_json: bool) -> None:
    """Print the share of held-out sums that stored models get right."""
    found = scores(Path(), base, list(names))
    if as_json:
        click.echo(json.dumps({"scores": found}, indent=2))
        return
    for name, share in found.items():
        click.echo(f"{name}  {share:.1%}")


if __name__ == "__main__":
    main()
