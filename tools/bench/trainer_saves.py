#!/usr/bin/env python3
"""What training waits for when Trainer saves, with and without deltas.

    python tools/bench/trainer_saves.py WORK [--gib 0.5] [--repeat 9]

A model of transformers is saved by ``Trainer.save_model`` as it saves a checkpoint: with deltas in
a thread, with deltas while training waits, and full. Each round also copies the weights to main
memory that is in use already, and to fresh memory, as ``tensor.to("cpu", copy=True)`` does. The
thread is idle when a save begins. Prints the medians of rounds that alternate all of them. A save
writes configurations, too, with or without deltas; what the weights alone take has a row.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from rlsparse_store.integrations.trainer import store_as_deltas

if TYPE_CHECKING:
    from collections.abc import Callable

COPY: Final = "copy to memory in use"
THREAD: Final = "deltas, in a thread"
DENSITY: Final = 0.02
"""Share of weights that training changed: their lowest bit."""


def make_model(gib: float) -> LlamaForCausalLM:
    """A bfloat16 model of this size on the current CUDA device, if there is one."""
    hidden = 1024
    layers = max(1, round(gib * 2**30 / (2 * hidden * (4 * hidden + 3 * 4096))))
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    model: Any = LlamaForCausalLM(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device, torch.bfloat16)  # type: ignore[no-any-return]


def change(model: torch.nn.Module) -> None:
    """Flip the lowest bit of some weights."""
    for weight in model.parameters():
        words = weight.detach().view(-1).view(torch.int16)
        places = torch.randint(len(words), (int(DENSITY * len(words)),), device=words.device)
        words[places] ^= 1


def attached(model: torch.nn.Module, base: Path, out: Path, **options: Any) -> Any:  # noqa: ANN401
    """A trainer of the model, whose checkpoints are deltas if there are options."""
    trainer = Trainer(model, TrainingArguments(str(out), report_to=[]))
    if options:
        store_as_deltas(trainer, base, **options)
    return trainer


class TimedAdd:
    """Times what a store takes of the weights of a checkpoint.

    Attributes:
        seconds: Wall time of the last one.
    """

    def __init__(self, store: Any) -> None:  # noqa: ANN401
        self._add = store.add
        store.add = self
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> None:  # noqa: ANN401
        """Add the weights."""
        self.seconds = seconds(lambda: self._add(*arguments))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False))
@click.option("--gib", default=0.5, show_default=True, help="Size of the weights.")
@click.option("--repeat", default=9, show_default=True, help="Number of rounds.")
def main(work: Path, gib: float, repeat: int) -> None:
    """Measure in WORK, which must not exist."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # On a busy machine, threads of torch wait for each other.
    torch.set_num_threads(1)
    work.mkdir(parents=True)
    model = make_model(gib)
    model.save_pretrained(work / "base")
    weights = list(model.parameters())
    nbytes = sum(weight.nbytes for weight in weights)
    buffers = [torch.zeros_like(weight, device="cpu") for weight in weights]
    trainers = {
        THREAD: attached(model, work / "base", work / "thread", background=True),
        "deltas, while training waits": attached(
            model, work / "base", work / "waiting", background=False
        ),
        "full": attached(model, work / "base", work / "full"),
    }

    weights_alone = TimedAdd(trainers[THREAD].delta_store)

    def copy() -> None:
        for buffer, weight in zip(buffers, weights, strict=True):
            buffer.copy_(weight.detach())

    def save(trainer: Any, number: int) -> None:  # noqa: ANN401
        trainer.save_model(f"{trainer.args.output_dir}/checkpoint-{number}", _internal_call=True)

    times: dict[str, list[float]] = {}
    for number in range(repeat + 1):
        change(model)
        measured = {
            COPY: seconds(copy),
            "copy to fresh memory": seconds(
                lambda: [weight.detach().to("cpu", copy=True) for weight in weights]
            ),
        }
        for name, trainer in trainers.items():
            measured[name] = seconds(lambda t=trainer, n=number: save(t, n))  # type: ignore[misc]
            if hasattr(trainer, "delta_store"):
                measured[f"{name}, until complete"] = measured[name] + seconds(
                    trainer.delta_store.finish
                )
        measured[f"{THREAD}, weights alone"] = weights_alone.seconds
        # The first round warms up.
        if number:
            for name, taken in measured.items():
                times.setdefault(name, []).append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    click.echo(f"{nbytes / 1e9:.2f} GB of weights, {len(weights)} tensors, {DENSITY:.0%} changed")
    for name, taken in medians.items():
        click.echo(f"{name:45} {taken * 1e3:8.1f} ms  {taken / medians[COPY]:6.2f} x")


if __name__ == "__main__":
    main()
