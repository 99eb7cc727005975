"""The examples in docstrings give what they say, and the README's Python runs."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from grpo_trainers import SHAPE, grpo_settings, ones, prompts
from loopback_s3 import LoopbackS3, upload
from models import move_weights, small_llama
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from trainers import Tokens, make_settings
from transformers import LlamaForCausalLM

import rlsparse_store
from rlsparse_store import (
    encode_delta,
    encode_run,
    from_delta,
    inspect_run,
    open_delta,
    verify_delta,
)
from rlsparse_store.cli.commands import rlsparse
from rlsparse_store.demo.policy import new_policy, save
from rlsparse_store.demo.task import new_tokenizer
from rlsparse_store.torch import load_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "specs/guides/loading.md"
TRAINING = ROOT / "specs/guides/training.md"
DISTRIBUTED = ROOT / "specs/guides/distributed.md"
OF_ENGINES = tuple(
    f"rlsparse_store.integrations.{name}"
    for name in (
        "sglang.ranks",
        *(f"vllm.{n}" for n in ("in_place", "loader", "ranks", "unsup", "weight_")),
    )
)
WATCHING = ROOT / "specs/guides/watching.md"
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


class Block(NamedTuple):
    """A block of code in a page: Python, or the lines of a shell."""

    kind: Literal["python", "shell"]
    text: str
    reason: str | None  # why it is not run


_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?"
    r"(?:^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?P<indented>(?:^    [^\n]*\n)+))",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(r"^(?:(?:rlsparse|pip|python|vllm|hf) |(?:VLLM|RLSPARSE)_\w+=)", re.MULTILINE)


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page that hold code. Drawings, output and listings have none."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if found["language"] == "python":
            yield Block("python", found["fenced"], found["reason"])
        else:
            text = textwrap.dedent(found["fenced"] or found["indented"] or "")
            if _COMMAND.match(text):
                yield Block("shell", text, found["reason"])


def python_in(page: Path) -> list[str]:
    """The Python of a page that is run, block by block."""
    return [
        block.text for block in blocks_of(page) if block.kind == "python" and block.reason is None
    ]


def run_page(page: Path, names: dict[str, Any]) -> None:
    """Run the code of a page from top to bottom."""
    for block in blocks_of(page):
        if block.reason is not None:
            continue
        if block.kind == "python":
            exec(compile(block.text, page.name, "exec"), names)  # noqa: S102 - it is our own
            continue
        for line in block.text.splitlines():
            command = shlex.split(line, comments=True)
            assert command[0] == "rlsparse", f"{page}: {line}: say why it is not run"
            # In this process, which is faster, and keeps its own handling of signals.
            with (
                patch("rlsparse_store.cli.commands.end_in_order"),
                patch("rlsparse_store.cli.watch.end_at_second"),
            ):
                result = CliRunner().invoke(rlsparse, command[1:])
            assert result.exit_code == 0, f"{line}: {result.output}"


PAGES = {page.relative_to(ROOT).as_posix() for page in (ROOT / "specs").rglob("*.md")}
RUN_BELOW = {
    "README.md",
    *(f"specs/{name}.md" for name in ("quickstart",)),
    *(
        f"specs/guides/{name}.md"
        for name in (
            "buckets",
            "checkpoints",
            "inspection",
            "loading",
            "runs",
            "subnetworks",
            "training",
        )
    ),
}
RUN_ELSEWHERE = {f"specs/guides/{name}.md" for name in ("distributed", "publishing", "watching")}
"""Run by tests below that choose among their blocks, and by those of their rooms."""
RUN_BY_ENGINES = {f"specs/guides/{name}.md" for name in ("serving", "serving-sglang")}
"""``tools/engines`` runs their Python, in the environment of the engine; CI does for vLLM."""


@pytest.mark.parametrize("page", sorted(PAGES - RUN_BELOW - RUN_ELSEWHERE))
def test_code_that_is_not_run_says_why(page: str) -> None:
    kinds = {"shell"} if page in RUN_BY_ENGINES else {"shell", "python"}
    blocks = (block for block in blocks_of(ROOT / page) if block.kind in kinds)
    silent = [block.text for block in blocks if block.reason is None]
    assert not silent, f"{page}: run it here, or write <!-- not run: REASON --> above it"


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
    names: dict[str, Any] = {}
    run_page(GUIDE, names)
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
        "settings": make_settings(Path("out"), max_steps=2),
        "dataset": Tokens(),
        "train": lambda tuned: move_weights(tuned, seed=1, density=0.1),
    }
    for code in python_in(TRAINING):
        if "import GRPOTrainer" not in code:
            exec(compile(code, TRAINING.name, "exec"), names)  # noqa: S102 - it is our own
    loaded = from_delta("base", "run/step-200")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    verify_delta("out/checkpoint-2", base="base")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_training_guide_with_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    save(new_policy(SHAPE, seed=1), Path("base"))
    tokenizer = new_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "="  # noqa: S105 - not a password
    tokenizer.save_pretrained("base")
    names: dict[str, object] = {"reward": ones, "prompts": prompts()}
    (code,) = (code for code in python_in(TRAINING) if "import GRPOTrainer" in code)
    first = code.replace("resume_from_checkpoint=True", "")
    for steps, run in ((2, first), (4, code)):
        names["settings"] = grpo_settings(Path("out"), steps, model_init_kwargs={"dtype": "auto"})
        exec(compile(run, TRAINING.name, "exec"), names)  # noqa: S102 - it is our own
    for step in (2, 4):
        verify_delta(f"out/checkpoint-{step}", base="base")


def test_distributed_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    move_weights(model, seed=1, density=0.1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        before = {name: t.full_tensor().clone() for name, t in model.state_dict().items()}

        class Adapter:
            to_hf = dict

        def train(model: torch.nn.Module) -> None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1)

        names: dict[str, object] = {
            "model": model,
            "dist": dist,
            "train": train,
            "sd_adapter": Adapter,
        }
        for code in python_in(DISTRIBUTED):
            exec(compile(code, DISTRIBUTED.name, "exec"), names)  # noqa: S102 - it is our own
    finally:
        dist.destroy_process_group()
    for step in (100, 200):
        with open_delta(f"run/step-{step}", base="base") as delta:
            assert delta.keys() == before.keys()
            assert all(torch.equal(delta[name], tensor) for name, tensor in before.items())
    assert len(list(Path("run").iterdir())) == 6


def test_watching_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    for step in (100, 200, 300, 400):
        move_weights(model, seed=step, density=0.05)
        model.save_pretrained(f"out/checkpoint-{step}")
        state = {"global_step": step, "log_history": [{"reward": step / 1000}]}
        Path(f"out/checkpoint-{step}/trainer_state.json").write_text(json.dumps(state))
    weights = Path("out/checkpoint-100/model.safetensors").read_bytes()
    run_page(WATCHING, {})
    # The command stored them before the loop looked.
    assert capsys.readouterr().out == ""
    assert [entry.metrics["reward"] for entry in inspect_run("run").deltas] == [0.1, 0.2, 0.3, 0.4]
    assert Path("restored/model.safetensors").read_bytes() == weights
    left = sorted(path.parent.name for path in Path("out").rglob("*.safetensors"))
    assert left == ["checkpoint-300", "checkpoint-400"]


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


def test_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pair("qwen-base", "qwen-grpo/checkpoint-200", density=0.01)
    names: dict[str, Any] = {}
    run_page(README, names)
    assert capsys.readouterr().out.startswith("0.01")
    tuned = Path("qwen-grpo/checkpoint-200/model.safetensors").read_bytes()
    assert Path("OUT/model.safetensors").read_bytes() == tuned
    loaded = names["model"]
    assert isinstance(loaded, LlamaForCausalLM)
    loaded.save_pretrained("saved")
    assert Path("saved/model.safetensors").read_bytes() == tuned
    assert Path("RUN/checkpoint-200/rlsparse/delta.safetensors").exists()


def write_pair(base: str, tuned: str, *, density: float = 0.05) -> LlamaForCausalLM:
    """A small base, and a checkpoint tuned from it."""
    model = small_llama()
    model.save_pretrained(base)
    move_weights(model, seed=1, density=density)
    model.save_pretrained(tuned)
    return model


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_pair("rlsparse-demo/base", "rlsparse-demo/tuned")
    names: dict[str, Any] = {}
    run_page(ROOT / "specs/quickstart.md", names)
    tuned = Path("rlsparse-demo/tuned/model.safetensors").read_bytes()
    assert Path("rebuilt/model.safetensors").read_bytes() == tuned
    assert Path("python-rebuilt/model.safetensors").read_bytes() == tuned
    for name, tensor in names["model"].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_checkpoints_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pair("base", "tuned")
    run_page(ROOT / "specs/guides/checkpoints.md", {})
    tuned = Path("tuned/model.safetensors").read_bytes()
    assert Path("rebuilt/model.safetensors").read_bytes() == tuned


def test_runs_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    for step in (100, 200, 300):
        move_weights(model, seed=step, density=0.05)
        model.save_pretrained(f"out/checkpoint-{step}")
    run_page(ROOT / "specs/guides/runs.md", {})
    tuned = Path("out/checkpoint-200/model.safetensors").read_bytes()
    assert Path("rebuilt/checkpoint-200/model.safetensors").read_bytes() == tuned


def test_buckets_guide(s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    model.save_pretrained("base")
    upload(f"{s3.url}/weights", Path("base"))
    for step in (100, 200, 300):
        move_weights(model, seed=step, density=0.05)
        model.save_pretrained(f"out/checkpoint-{step}")
    page = (ROOT / "specs/guides/buckets.md").read_text(encoding="utf-8")
    Path("buckets.md").write_text(page.replace("s3://bucket", s3.url), encoding="utf-8")
    names: dict[str, Any] = {}
    run_page(Path("buckets.md"), names)
    tuned = Path("out/checkpoint-100/model.safetensors").read_bytes()
    assert Path("rebuilt/model.safetensors").read_bytes() == tuned
    expected = LlamaForCausalLM.from_pretrained("out/checkpoint-100").state_dict()
    assert torch.equal(names["rows"], expected["model.embed_tokens.weight"][:10])
    for name, tensor in names["model"].state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    verify_delta("delta-200", base="base", tuned="out/checkpoint-200")


def test_inspection_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_pair("base", "tuned")
    move_weights(model, seed=2, density=0.05)
    model.save_pretrained("further")
    encode_delta("base", "tuned", "delta")
    encode_delta("base", "further", "other")
    run_page(ROOT / "specs/guides/inspection.md", {})
    assert Path("page.html").stat().st_size > 10_000
