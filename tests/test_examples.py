"""The examples in docstrings give what they say, and the README's Python runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import move_weights, small_llama
from transformers import LlamaForCausalLM

import rlsparse_store
from rlsparse_store import encode_delta, encode_run, from_delta
from rlsparse_store.torch import load_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "specs/guides/loading.md"
TRAINING = ROOT / "specs/guides/training.md"
OF_ENGINES = tuple(
    f"rlsparse_store.integrations.{name}"
    for name in (
        "sglang.ranks",
        *(f"vllm.{n}" for n in ("in_place", "loader", "ranks", "unsup", "weight_")),
    )
)
SUBNETWORKS = ROOT / "specs/guides/subnetworks.md"


def modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(rlsparse_store.__path__, "rlsparse_store."):
        # The demo's modules load torch, __main__ runs the command, and engines are not installed.
        others = "rlsparse_store.demo", "rlsparse_store.__main__"
        if not module.name.startswith((*others, *OF_ENGINES)):
            yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def python_in(page: Path) -> list[str]:
    """The Python of a page of Markdown, block by block."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_page(page: Path, names: dict[str, Any]) -> None:
    """Run the Python and the indented commands of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    for code, command in re.findall(
        r"```python\n(.*?)```|^    rlsparse ([^\n]*)$", text, re.MULTILINE | re.DOTALL
    ):
        if code:
            exec(compile(code, page.name, "exec"), names)  # noqa: S102 - it is our own
        else:
            run = [sys.executable, "-P", "-m", "rlsparse_store"]
            subprocess.run([*run, *shlex.split(command, comments=True)], check=True)


def test_loading_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    model.generation_config.max_new_tokens = 5
    for step in (100, 200, 300):
        move_weights(model, seed=step, density=0.05)
        model.save_pretrained(f"step-{step}")
    encode_run("base", ["step-100", "step-200", "step-300"], "run")
    names: dict[str, object] = {}
    for code in python_in(GUIDE):
        exec(compile(code, GUIDE.name, "exec"), names)  # noqa: S102 - it is our own
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "['LlamaForCausalLM'] 5"
    assert [line.split()[0] for line in lines[1:4]] == [
        "run/step-100",
        "run/step-200",
        "run/step-300",
    ]
    assert lines[4:6] == ["torch.Size([24, 64]) torch.Size([64, 24]) torch.bfloat16", "uint16"]
    assert lines[6] in model.state_dict()
    tuned = model.state_dict()
    mine, down = names["mine"], names["down"]
    assert isinstance(mine, torch.Tensor)
    assert isinstance(down, torch.Tensor)
    assert torch.equal(mine, tuned["model.layers.0.mlp.up_proj.weight"][24:48])
    assert torch.equal(down, tuned["model.layers.0.mlp.down_proj.weight"][:, 24:48])


def test_training_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    names: dict[str, object] = {
        "model": model,
        "train": lambda tuned: move_weights(tuned, seed=1, density=0.1),
    }
    for code in python_in(TRAINING):
        exec(compile(code, TRAINING.name, "exec"), names)  # noqa: S102 - it is our own
    loaded = from_delta("base", "run/step-200")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_subnetworks_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    move_weights(model, seed=1, density=0.2)
    model.save_pretrained("tuned")
    encode_delta("base", "tuned", "full")
    names: dict[str, Any] = {}
    run_page(SUBNETWORKS, names)
    assert load_mask("of-sub.safetensors").count() > 0
    assert load_mask("control.safetensors").count() == names["mask"].count()


def test_readme_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("qwen-base")
    move_weights(model, seed=1, density=0.01)
    model.save_pretrained("qwen-grpo/checkpoint-200")
    names: dict[str, object] = {}
    for code in python_in(README):
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - it is our own
    assert capsys.readouterr().out.startswith("0.01")
    again = Path("qwen-grpo-again/model.safetensors").read_bytes()
    assert again == Path("qwen-grpo/checkpoint-200/model.safetensors").read_bytes()
    loaded = names["model"]
    assert isinstance(loaded, LlamaForCausalLM)
    loaded.save_pretrained("saved")
    assert Path("saved/model.safetensors").read_bytes() == again
