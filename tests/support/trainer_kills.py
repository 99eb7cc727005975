"""Kill a trainer at random moments, and require that nothing is torn and nothing is lost.

    python tests/support/trainer_kills.py FOLDER KILLS SEED

A child trains, resumes from the last finished checkpoint, and keeps two. After each kill, every
finished checkpoint has the weights that an uninterrupted run has at its step, and one that was
finished before, or a later one, is finished still. The last child runs to its end, and ends as the
uninterrupted run does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from models import small_llama
from safetensors.torch import load_file
from trainers import make_trainer

from rlsparse_store import apply_delta
from rlsparse_store.integrations.trainer import store_as_deltas
from rlsparse_store.integrations.trainer.checkpoint_folders import (
    DRAFTS,
    has_delta,
    is_finished,
    last_finished,
)
from rlsparse_store.torch.encoder import DeltaEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 30
SETTINGS: dict[str, Any] = {"max_steps": STEPS, "save_steps": 1, "learning_rate": 3e-5}


def forked(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Run a function in a child, which is killed after some seconds. Returns if it finished."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in {0, signal.SIGKILL}, f"training failed: {status}"
    return status == 0


def train(base: Path, out: Path, seed: int) -> None:
    encode = DeltaEncoder.encode

    def slow(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        time.sleep(random.random() / 20)  # noqa: S311 - not a secret
        report = encode(*args, **options)
        time.sleep(random.random() / 20)  # noqa: S311 - as above
        return report

    DeltaEncoder.encode = slow  # type: ignore[method-assign]
    trainer = make_trainer(base, out, save_total_limit=2, **SETTINGS)
    store_as_deltas(trainer, base, queue=seed % 2)
    trainer.train(resume_from_checkpoint=last_finished(out) is not None)
    # Trainer's own seeds are equal in all runs; the moments of the kills are not.
    random.seed(seed)


def check(base: Path, out: Path, scratch: Path, expected: Path) -> None:
    """Require that finished checkpoints have the weights of the uninterrupted run."""
    for folder in out.glob("checkpoint-*"):
        if is_finished(folder):
            full = folder / "model.safetensors"
            if has_delta(folder):
                apply_delta(folder, scratch / folder.name, base=base)
                full = scratch / folder.name / "model.safetensors"
            wanted = load_file(expected / folder.name / "model.safetensors")
            found = load_file(full)
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name


def main(root: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - not a secret
    base, plain, out = root / "base", root / "plain", root / "out"
    forked(lambda: small_llama().save_pretrained(base))
    forked(lambda: make_trainer(base, plain, **SETTINGS).train())
    done = number = 0
    while done < STEPS:
        seconds = 0.3 + 1.2 * chance.random() if number < kills else None
        forked(lambda n=number: train(base, out, n), seconds)  # type: ignore[misc]
        scratch = root / f"scratch-{number}"
        assert forked(lambda s=scratch: check(base, out, s, plain))  # type: ignore[misc]
        last = last_finished(out)
        step = 0 if last is None else int(last.name.rpartition("-")[2])
        assert step >= done, f"checkpoint-{done} was lost"
        done = step
        number += 1
    left = {path.name for path in out.iterdir()} - {DRAFTS}
    assert left == {f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"}
    sys.stdout.write(f"{number} processes\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
