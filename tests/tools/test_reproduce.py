"""The papers' runs in miniature: their losses, and all of it from training to the report."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
import torch
from forks import Forks
from pairs import contents

from losses import LOSSES, Setting, generalized_advantages, preference_pairs
from plan import ALGORITHMS, Run, smoke
from problem import halves, held_out, training_sums
from reproduce import main, missing
from rlsparse_store import open_delta
from rlsparse_store.demo.policy import PolicyShape, PretrainingSettings, new_policy, pretrain
from rlsparse_store.demo.task import decode, pretraining_texts, reward
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.torch import load_mask
from training import train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import LlamaForCausalLM

REPRODUCE = Path(__file__).parents[2] / "tools/reproduce/reproduce.py"

Json = dict[str, Any]


# --- The problem and the losses -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["claims", "problem", "tables"])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_halves_share_no_sum() -> None:
    first, second = (
        {tuple(sorted((s.left, s.right))) for s in half} for half in halves(training_sums())
    )
    kept = {tuple(sorted((s.left, s.right))) for s in held_out()}
    assert first
    assert second
    assert not first & second
    assert not (first | second) & kept


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    """A base that hesitates: some of its answers are right, some are not."""
    shape = PolicyShape(hidden_size=64, intermediate_size=128, layers=1, heads=2, initial_std=0.06)
    policy = new_policy(shape, seed=0)
    settings = PretrainingSettings(steps=120, batch_size=128, learning_rate=3e-3)
    pretrain(policy, pretraining_texts(training_sums()), settings, 1, lambda _: None)
    return policy


def setting(base: LlamaForCausalLM, algorithm: str, **options: Any) -> Setting:  # noqa: ANN401
    return Setting(
        policy=base,
        base=base,
        sums=training_sums(),
        run=Run(label=algorithm, algorithm=algorithm, seed=0, **options),
        plan=replace(smoke(), answers=256),
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("algorithm", LOSSES)
def test_losses_have_gradients_everywhere(base: LlamaForCausalLM, algorithm: str) -> None:
    base.zero_grad()
    # Two rounds, for what samples in rounds.
    next_loss = LOSSES[algorithm](setting(base, algorithm))
    for _ in range(4):
        next_loss().backward()  # type: ignore[no-untyped-call]
    for name, parameter in base.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_dpo_begins_at_even_odds(base: LlamaForCausalLM) -> None:
    assert LOSSES["dpo"](setting(base, "dpo"))().item() == pytest.approx(math.log(2), abs=1e-6)


def test_a_penalty_begins_at_nothing(base: LlamaForCausalLM) -> None:
    plain, penalized = (LOSSES["grpo"](setting(base, "grpo", kl=kl))() for kl in (0.0, 1.0))
    assert plain.item() == pytest.approx(penalized.item(), abs=1e-6)


def test_pairs_are_a_right_and_a_wrong_answer(base: LlamaForCausalLM) -> None:
    pairs = preference_pairs(setting(base, "dpo"))
    assert len(pairs.prompts)
    for prompt, right, wrong in zip(pairs.prompts, pairs.right, pairs.wrong, strict=True):
        asked = decode(prompt.tolist())
        assert reward(asked, decode(right.tolist())) == 1
        assert reward(asked, decode(wrong.tolist())) == 0


def test_generalized_advantages_are_the_published_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(5, 3, generator=generator)
    rewards = torch.tensor([1.0, 0, 0, 1, 1])
    found = generalized_advantages(values, rewards, decay=0.95)
    for row in range(5):
        after = [*values[row, 1:].tolist(), rewards[row].item()]
        errors = [later - now for later, now in zip(after, values[row].tolist(), strict=True)]
        for token in range(3):
            expected = sum(0.95**k * error for k, error in enumerate(errors[token:]))
            assert found[row, token].item() == pytest.approx(expected, abs=1e-6)


# --- All of it ------------------------------------------------------------------------------------


@pytest.fixture
def forks() -> Iterator[Forks]:
    with Forks(["rlsparse_store.cli.exit_codes", "rlsparse_store.analysis"], os.environ) as running:
        yield running


def ask(forks: Forks, out: Path, command: str) -> Json:
    """The answer to a command as the report prints it."""
    program, *arguments = command.split()
    assert program == "rlsparse"
    done = forks.run_module("rlsparse_store", *arguments, env=os.environ, cwd=out)
    assert done.returncode == 0, done.stderr
    answer: Json = json.loads(done.stdout)
    return answer


def commands(report: str, begin: str) -> Iterator[str]:
    for line in report.splitlines():
        if line.startswith(f"    {begin}"):
            yield line.strip()


def changed_by_hand(out: Path, name: str) -> tuple[int, int]:
    """Changed words and all words of a delta, by comparing every word with the base's."""
    changed = words = 0
    with (
        open_delta(out / name, base=out / "base", framework="bits") as tuned,
        open_checkpoint(out / "base") as base,
    ):
        for key in tuned:
            before = base.tensors[key]
            data = np.empty(before.nbytes, np.uint8)
            base.read_into(before, 0, data)
            changed += int((tuned[key].ravel() != data.view(np.uint16)).sum())
            words += data.size // 2
    return changed, words


def test_from_training_to_the_report(tmp_path: Path, forks: Forks) -> None:
    out = tmp_path / "out"
    # One run at a time: for so little, another process takes longer to import torch.
    command = [sys.executable, str(REPRODUCE), str(out), "--smoke", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = (out / "report.md").read_text()

    verdicts = re.findall(r"\*\*(agrees|disagrees|cannot tell)\*\* \|", report)
    assert len(verdicts) == 20
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", report)
    assert sorted(pictures) == sorted(path.name for path in out.glob("*.png"))

    (asked,) = set(commands(report, "rlsparse inspect grpo-s0-d0 "))
    values = ask(forks, out, asked)["values"]
    assert (values["changed"], values["words"]) == changed_by_hand(out, "grpo-s0-d0")
    (norms,) = [block for block in values["blocks"] if block["name"] == "norm"]
    assert norms["changed"] == 0

    density = {
        label: ask(forks, out, f"rlsparse inspect {label}-s0-d0 --json")["density"]
        for label in (*ALGORITHMS, "grpo10", "grpo-pure")
    }
    assert density["sft10"] > 2 * max(density[label] for label in ALGORITHMS[1:])
    assert density["grpo10"] > 2 * density["grpo"] > 2 * density["grpo-pure"] > 0
    (asked,) = set(commands(report, "rlsparse inspect grpo-s0-d0-float32 "))
    assert ask(forks, out, asked)["density"] > 0.95

    for kind in ("exact", "random", "magnitude"):
        mask = f"masks/dpo-s0-d0-{kind}.safetensors"
        sub = f"masks/of-{kind}.safetensors"
        ask(forks, out, f"rlsparse mask dpo-{kind}-s0-d0 --base base -o {sub} --json")
        assert not outside(out / sub, out / mask)
    (asked,) = set(commands(report, "rlsparse match dpo-s0-d0 dpo-exact-s0-d0 "))
    assert ask(forks, out, asked)["sub_outside"] == 0

    plan = smoke()
    assert missing([*plan.first(), *plan.second()], out) == []
    (run,) = [run for run in plan.first() if run.name == "grpo-s0-d0"]
    stored = contents(out / run.last)
    shutil.rmtree(out / run.last)
    assert missing([*plan.first(), *plan.second()], out) == [run]
    train_alone(run, out)
    assert contents(out / run.last) == stored
    with pytest.raises(click.ClickException, match="of another plan") as told:
        main([str(out)], standalone_mode=False)
    assert told.value.exit_code == 1


def train_alone(run: Run, out: Path) -> None:
    """Train a run as the command does: by one thread, or sums are rounded differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(run, smoke(), out)
    finally:
        torch.set_num_threads(threads)


def outside(sub: Path, mask: Path) -> int:
    """Words of one mask that another does not have."""
    return (load_mask(sub) - load_mask(mask)).count()
