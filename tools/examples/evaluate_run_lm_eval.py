#!/usr/bin/env python3
"""Evaluate every checkpoint of a run with lm-eval, on one vLLM engine.

    pip install lm-eval
    python tools/examples/evaluate_run_lm_eval.py Qwen/Qwen2.5-7B run gsm8k --limit 200

Tasks are lm-eval's, by name, or of your own with ``--include FOLDER``. Prints a line for each
checkpoint, task and metric. Tried with lm-eval 0.4.13 and vLLM 0.32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from lm_eval import simple_evaluate
from lm_eval.models.vllm_causallms import VLLM
from lm_eval.tasks import TaskManager

from rlsparse_store.integrations.vllm import walk


def new_model(base: str, run: str, **engine: Any) -> VLLM:  # noqa: ANN401 - vLLM's options
    """lm-eval's model over an engine that starts with the base and may load the run's deltas."""
    return VLLM(
        base,
        load_format="rlsparse",
        model_loader_extra_config={"roots": [str(Path(run).absolute())]},
        weight_transfer_config={"backend": "rlsparse"},
        **engine,
    )


@click.command()
@click.argument("base")
@click.argument("run")
@click.argument("tasks", nargs=-1, required=True)
@click.option("--limit", type=int, help="Examples of each task; by default all.")
@click.option("--include", type=click.Path(), help="Folder with tasks of your own.")
@click.option("--engine", default="{}", help="More options of vllm.LLM, as JSON.")
def main(
    base: str,
    run: str,
    tasks: tuple[str, ...],
    *,
    limit: int | None,
    include: str | None,
    engine: str,
) -> None:
    """Print the metrics of TASKS at each step of RUN, whose base is BASE."""
    model, manager = new_model(base, run, **json.loads(engine)), TaskManager(include_path=include)

    def show(name: str) -> None:
        found: dict[str, Any] = simple_evaluate(
            model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0
        )
        for task, metrics in found["results"].items():
            for metric, value in metrics.items():
                if isinstance(value, float):
                    click.echo(f"{name}  {task}  {metric.removesuffix(',none')}  {value:.4f}")

    show("base")
    for name, _ in walk(model.model, run):
        show(name)


if __name__ == "__main__":
    main()
