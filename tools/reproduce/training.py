"""Training of runs, and storage as deltas."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from transformers.utils import logging as transformers_logging

from losses import LOSSES, Setting
from plan import BASE, BASE_FLOAT32, FLOAT32, NULL
from problem import halves, training_sums
from rlsparse_store import open_delta
from rlsparse_store.demo.policy import load, new_policy, pretrain, save
from rlsparse_store.demo.task import pretraining_texts
from rlsparse_store.torch import DeltaEncoder, Frozen, freeze_outside, load_mask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor
    from transformers import LlamaForCausalLM

    from plan import Plan, Run

__all__ = ["make_base", "quiet_transformers", "shuffle", "stored_weights", "train"]

_MAX_GRAD_NORM: Final = 1.0


def make_base(plan: Plan, folder: Path) -> None:
    """Pretrain the base, and store it in bfloat16, and with the same values in float32."""
    with quiet_transformers():
        policy = new_policy(plan.shape, seed=0)
        pretrain(policy, pretraining_texts(training_sums()), plan.pretraining, 1, lambda _: None)
        save(policy, folder / BASE)
        load(folder / BASE).save_pretrained(folder / BASE_FLOAT32)


def train(run: Run, plan: Plan, folder: Path) -> None:
    """Train a run from the base, and store its delta.

    Args:
        run: The run.
        plan: Its plan.
        folder: Folder of the base, the masks and the deltas.
    """
    with quiet_transformers():
        policy = load(folder / BASE)
        if run.pure:
            policy = policy.bfloat16()
        optimizer = torch.optim.AdamW(
            policy.parameters(), lr=run.rate * plan.learning_rate, weight_decay=0
        )
        frozen = _freeze(policy, run, optimizer, folder)
        setting = Setting(
            policy=policy,
            base=load(folder / BASE).requires_grad_(requires_grad=False),
            sums=halves(training_sums())[run.split],
            run=run,
            plan=plan,
            generator=torch.Generator().manual_seed(1000 + run.seed),
        )
        _tune(setting, optimizer, folder)
        if frozen:
            frozen.check()
        if run.float32:
            _store(policy.state_dict(), folder, run.name + FLOAT32, BASE_FLOAT32)


def _freeze(
    policy: LlamaForCausalLM, run: Run, optimizer: torch.optim.Optimizer, folder: Path
) -> Frozen | None:
    return (
        freeze_outside(policy, load_mask(folder / run.mask_file), optimizer) if run.mask else None
    )


def _tune(setting: Setting, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Take all optimizer steps, and store the policy at every checkpoint."""
    run, policy = setting.run, setting.policy
    next_loss = LOSSES[run.algorithm](setting)
    updates = round(setting.plan.updates * run.steps)
    every = updates // (run.checkpoints or 1)
    for update in range(1, updates + 1):
        optimizer.zero_grad()
        next_loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), _MAX_GRAD_NORM)
        optimizer.step()
        if update % every == 0:
            _store(policy.state_dict(), folder, run.checkpoint(update // every))


def _store(weights: dict[str, Tensor], folder: Path, name: str, base: str = BASE) -> None:
    if (folder / name).is_dir():
        # Left by an interrupted run. Training is deterministic, so it is the same.
        return
    # Rounds float32 masters to bfloat16 as a trainer does on saving.
    with DeltaEncoder(folder / base, device="cpu", threads=1) as encoder:
        encoder.encode(weights, folder / name, cast="bf16" if base == BASE else None)


def stored_weights(folder: Path, name: str, base: str = BASE) -> dict[str, Tensor]:
    """The weights of a run, read from its delta."""
    with open_delta(folder / name, base=folder / base) as tuned:
        return {key: tuned.get_tensor(key) for key in tuned.keys()}  # noqa: SIM118 - no mapping


def shuffle(name: str, seed: int, folder: Path) -> None:
    """Store the base plus a run's update, permuted within each tensor.

    The null for overlaps: an update of the same size in random positions.

    Args:
        name: Name of a run that is stored in float32, without the suffix.
        seed: Seed of the permutation.
        folder: Folder of the runs.
    """
    generator = torch.Generator().manual_seed(seed)
    tuned = stored_weights(folder, name + FLOAT32, BASE_FLOAT32)
    for key, before in load(folder / BASE).state_dict().items():
        update = (tuned[key] - before).flatten()
        order = torch.randperm(len(update), generator=generator)
        tuned[key] = before + update[order].view_as(before)
    _store(tuned, folder, name + NULL)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
