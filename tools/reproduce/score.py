#!/usr/bin/env python3
"""Print the scores of stored models: shares of held-out sums answered correctly.

    python tools/reproduce/score.py --base base grpo-s0-d0 sft-s0-d0

Each model is loaded from its delta and the base, in the stored precision. Answers are greedy. The
base is listed first.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from problem import held_out
from rlsparse_store.demo.policy import greedy_answers, load, token_ids
from rlsparse_store.demo.task import reward
from training import quiet_transformers, stored_weights

__all__ = ["scores"]


def scores(folder: Path, base: str, names: list[str]) -> dict[str, float]:
    """Scores of the base and of runs: shares of held-out sums answered correctly.

    Args:
        folder: Folder of the models.
        base: Name of the base.
        names: Names of the runs.
    """
    prompts = [problem.prompt for problem in held_out()]
    with quiet_transformers():
        policy = load(folder / base)
        shares = {}
        for name in [base, *names]:
            if name != base:
                policy.load_state_dict(stored_weights(folder, name, base))
            texts = greedy_answers(policy, token_ids(prompts)).texts()
            shares[name] = sum(map(reward, prompts, texts)) / len(prompts)
    return shares


@click.command()
@click.argument("names", nargs=-1, metavar="DELTA...")
@click.option("--base", required=True, help="Name of the base.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(names: tuple[str, ...], base: str, *, as_json: bool) -> None:
    """Print the scores of stored models: shares of held-out sums answered correctly."""
    shares = scores(Path(), base, list(names))
    if as_json:
        click.echo(json.dumps({"scores": shares}, indent=2))
        return
    for name, share in shares.items():
        click.echo(f"{name}  {share:.1%}")


if __name__ == "__main__":
    main()
