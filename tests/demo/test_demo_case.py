"""The demonstration with its quick settings, and its parts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rlsparse_store.demo.case import DemoCase, DemoSettings, make_case
from rlsparse_store.demo.grpo import advantages, clipped_objective
from rlsparse_store.demo.policy import answer_log_probs, greedy_answers, load, sample, token_ids
from rlsparse_store.demo.task import (
    SYMBOLS,
    Sum,
    decode,
    encode,
    pretraining_texts,
    reward,
    split_sums,
)

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ["47+85=", "00+00=", "99+99=", "07+12="]


@dataclass(frozen=True)
class DemoRun:
    """A finished run of the demonstration, and its log."""

    case: DemoCase
    lines: list[str]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    lines: list[str] = []
    case = make_case(tmp_path_factory.mktemp("demo"), DemoSettings.quick(), lines.append)
    return DemoRun(case, lines)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- The case -----------------------------------------------------------------------------------


def test_the_two_models_have_the_same_tensors(demo: DemoRun) -> None:
    base, tuned = weights(demo.case.base), weights(demo.case.tuned)
    assert {name: tensor.shape for name, tensor in base.items()} == {
        name: tensor.shape for name, tensor in tuned.items()
    }
    assert {tensor.dtype for tensor in [*base.values(), *tuned.values()]} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in base.values()) == demo.case.parameters


def test_some_words_change_and_most_do_not(demo: DemoRun) -> None:
    base, tuned = weights(demo.case.base), weights(demo.case.tuned)
    changed = sum(
        int((base[name].view(torch.int16) != tuned[name].view(torch.int16)).sum()) for name in base
    )
    assert 0 < changed < demo.case.parameters / 2


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_transformers_loads_and_runs_the_models(demo: DemoRun, which: str) -> None:
    folder = getattr(demo.case, which)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPTS, return_tensors="pt")
    assert inputs.input_ids.tolist() == [encode(prompt) for prompt in PROMPTS]
    # The generation of transformers, in the precision of the demonstration.
    texts = tokenizer.batch_decode(model.generate(**inputs, do_sample=False))
    answers = greedy_answers(load(folder), token_ids(PROMPTS)).texts()
    assert texts == [prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)]


def test_rewards_are_consistent(demo: DemoRun) -> None:
    case = demo.case
    assert case.prompts == DemoSettings.quick().held_out
    assert 0 <= case.reward_before <= 1
    assert 0 <= case.reward_after <= 1
    assert case.reward_gain == pytest.approx(case.reward_after - case.reward_before)
    # For rewards of 0 or 1, the mean determines its standard error.
    mean = case.reward_before
    assert case.reward_before_se == pytest.approx((mean * (1 - mean) / (case.prompts - 1)) ** 0.5)


def test_progress_is_logged_line_by_line(demo: DemoRun) -> None:
    assert any("pretraining step" in line for line in demo.lines)
    assert any("GRPO step" in line for line in demo.lines)
    assert not any("\n" in line for line in demo.lines)


def test_a_second_run_makes_the_same_files_and_prints_nothing(
    demo: DemoRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    random_state = torch.get_rng_state()
    again = make_case(tmp_path, DemoSettings.quick(), lambda _: None)
    assert contents(again.base) == contents(demo.case.base)
    assert contents(again.tuned) == contents(demo.case.tuned)
    assert capfd.readouterr() == ("", "")
    # Global state is restored.
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert torch.equal(torch.get_rng_state(), random_state)


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, rlsparse_store.demo\nassert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


# --- The task -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("47+85=", "132", 1.0),
        ("07+05=", "012", 1.0),
        ("00+00=", "000", 1.0),
        ("99+99=", "198", 1.0),
        ("47+85=", "231", 0.0),  # reversed digits
        ("47+85=", "122", 0.0),  # a missing carry
        ("07+05=", "12=", 0.0),
        ("07+05=", "+12", 0.0),  # int() accepts it
    ],
)
def test_reward(prompt: str, answer: str, expected: float) -> None:
    assert reward(prompt, answer) == expected


def test_held_out_sums_are_not_trained_on_in_either_order() -> None:
    train, held_out = split_sums(2000, seed=0)
    assert len(held_out) == len(set(held_out)) == 2000
    assert len(train) == len(set(train))
    trained = {frozenset((problem.left, problem.right)) for problem in train}
    evaluated = {frozenset((problem.left, problem.right)) for problem in held_out}
    assert len(evaluated) == 2000
    assert not trained & evaluated
    assert len(trained | evaluated) == 100 * 101 // 2
    assert split_sums(2000, seed=0) == (train, held_out)
    assert split_sums(2000, seed=1) != (train, held_out)


def test_pretraining_texts_have_both_notations() -> None:
    assert pretraining_texts([Sum(47, 85)]) == ["47+85=132", "47+85=231"]


def test_encode_and_decode() -> None:
    assert encode(SYMBOLS) == list(range(len(SYMBOLS)))
    assert decode(encode("47+85=132")) == "47+85=132"


# --- The policy ---------------------------------------------------------------------------------


def test_sampled_log_probs_are_those_of_the_answers(demo: DemoRun) -> None:
    policy = load(demo.case.base)
    prompts = token_ids(PROMPTS)
    rollouts = sample(policy, prompts, 3, torch.Generator().manual_seed(0))
    assert rollouts.answers.shape == (len(PROMPTS) * 3, 3)
    again = answer_log_probs(policy, prompts.repeat_interleave(3, dim=0), rollouts.answers)
    # One is computed token by token, the other in one pass.
    assert float((again - rollouts.log_probs).detach().abs().max()) < 1e-5


def test_loaded_weights_are_those_in_the_file(demo: DemoRun) -> None:
    in_file = weights(demo.case.base)
    for name, tensor in load(demo.case.base).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, in_file[name].float())


# --- GRPO ---------------------------------------------------------------------------------------


def test_advantages_are_relative_to_the_group() -> None:
    # The second group has a mean of 1/4 and a standard deviation of 1/2.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    first, second = advantages(rewards).tolist()
    half = 0.5 / (1 / 3) ** 0.5
    assert first == pytest.approx([half, -half, -half, half], rel=1e-3)
    assert second == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rewards_give_no_advantage(value: float) -> None:
    assert advantages(torch.full((2, 16), value)).tolist() == [[0.0] * 16] * 2


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "learns"),
    [
        (1.0, 2.0, 2.0, True),
        (1.0, -2.0, -2.0, True),
        (1.5, 2.0, 2.4, False),  # clipped above
        (1.5, -2.0, -3.0, True),
        (0.5, 2.0, 1.0, True),
        (0.5, -2.0, -1.6, False),  # clipped below
    ],
)
def test_clipped_objective(
    ratio: float,
    advantage: float,
    expected: float,
    learns: bool,  # noqa: FBT001
) -> None:
    old = torch.tensor([[-1.0]])
    new = (old + torch.tensor(ratio).log()).requires_grad_()
    objective = clipped_objective(new, old, torch.tensor([[advantage]]), 0.2)
    (gradient,) = torch.autograd.grad(objective, new)
    assert objective.item() == pytest.approx(expected)
    # The derivative of a ratio with respect to its logarithm is the ratio.
    assert gradient.item() == pytest.approx(ratio * advantage if learns else 0.0)


def test_objective_is_the_mean_over_tokens() -> None:
    log_probs = torch.zeros(2, 3)
    assert clipped_objective(log_probs, log_probs, torch.tensor([[1.0], [4.0]]), 0.2).item() == 2.5
