#!/usr/bin/env python3
"""Evaluate every checkpoint of a run on one vLLM engine, and draw the curve.

    rlsparse demo -o demo                           # makes demo/base and demo/tuned
    rlsparse encode demo/base demo/tuned --run -o run
    python tools/examples/evaluate_run.py demo/base run --out curve.png

The task is the demo's: held-out sums, of which a policy answers some share correctly. For a task of
your own, replace ``share_correct``. Needs vLLM and matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from vllm import LLM, SamplingParams

from rlsparse_store.demo.task import (
    ANSWER_LENGTH,
    PROMPT_LENGTH,
    decode,
    encode,
    reward,
    split_sums,
)
from rlsparse_store.integrations.vllm import walk


def share_correct(engine: Any, sums: int) -> float:  # noqa: ANN401 - vllm.LLM
    """The share of held-out sums that the engine answers correctly, greedily."""
    _, held_out = split_sums(sums, seed=0)
    prompts = [{"prompt_token_ids": encode(problem.prompt)} for problem in held_out]
    greedy = SamplingParams(temperature=0, max_tokens=ANSWER_LENGTH)
    outputs = engine.generate(prompts, greedy, use_tqdm=False)
    answers = [decode(output.outputs[0].token_ids) for output in outputs]
    pairs = zip(held_out, answers, strict=True)
    return sum(reward(problem.prompt, answer) > 0 for problem, answer in pairs) / len(held_out)


@click.command()
@click.argument("base")
@click.argument("run")
@click.option("--sums", default=200, show_default=True, help="Held-out sums to ask for.")
@click.option("--out", type=click.Path(path_type=Path), help="Picture to draw.")
def main(base: str, run: str, sums: int, out: Path | None) -> None:
    """Print the share of correct answers at each step of RUN, whose base is BASE."""
    llm = LLM(
        base,
        dtype="bfloat16",
        max_model_len=PROMPT_LENGTH + ANSWER_LENGTH,
        enforce_eager=True,  # compiling takes longer than these models
        load_format="rlsparse",
        model_loader_extra_config={"roots": [str(Path(run).absolute())]},
        weight_transfer_config={"backend": "rlsparse"},
    )
    shares = {"base": share_correct(llm, sums)}
    shares |= {name: share_correct(engine, sums) for name, engine in walk(llm, run)}
    for name, share in shares.items():
        click.echo(f"{name}  {share:.1%}")
    if out is not None:
        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(list(shares), list(shares.values()), marker="o")
        axes.set(xlabel="checkpoint", ylabel="share correct", ylim=(0, 1))
        figure.savefig(out)


if __name__ == "__main__":
    main()
