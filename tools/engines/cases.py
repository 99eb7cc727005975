#!/usr/bin/env python3
"""Small models for the engines: a base, a run of tuned checkpoints, and their deltas.

    python tools/engines/cases.py OUT NAME STEPS

A case is a folder: ``base/``, ``step-1/`` … and ``run/step-1/`` …, the deltas. Weights are
random; a step moves a part of the words far enough that the greedy tokens differ from the base's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlsparse_store.delta.run_encoder import encode_run
from rlsparse_store.demo.task import new_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: Final[dict[str, Any]] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
DENSITY: Final = 0.2
"""Share of the words that a step changes."""


@dataclass(frozen=True)
class Case:
    """A model, and how its files are split.

    Attributes:
        make: Makes the model.
        shard_size: Largest file of the base, as ``save_pretrained`` takes it.
        densities: If given, step by step the share of words that move to a neighbour, as in
            training; otherwise a step replaces words by others.
    """

    make: Callable[[], PreTrainedModel]
    shard_size: str = "5GB"
    densities: tuple[float, ...] = ()


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _llama_large() -> PreTrainedModel:
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    return LlamaForCausalLM(LlamaConfig(**(SIZES | wide | heads)))


def _qwen3_tied() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True))


def _qwen3_moe() -> PreTrainedModel:
    config = Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    return Qwen3MoeForCausalLM(config)


CASES: Final = {
    "llama": Case(_llama, shard_size="200KB"),
    "llama-large": Case(_llama_large, densities=(0.01, 0.05, 0.28)),
    "qwen3-tied": Case(_qwen3_tied),
    "qwen3-moe": Case(_qwen3_moe, shard_size="200KB"),
}


def make_case(name: str, out: Path, steps: int = 3) -> Path:
    """Make a case, unless it is there.

    Args:
        name: Its name in :data:`CASES`.
        out: Folder of all cases.
        steps: Tuned checkpoints.

    Returns:
        Its folder.
    """
    folder = out / name
    if (folder / "run").is_dir():
        return folder
    torch.manual_seed(20)
    model = CASES[name].make()
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    # Larger than a fresh model's: the tokens depend on every layer.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    tokenizer = new_tokenizer()
    for step in range(steps + 1):
        place = folder / (f"step-{step}" if step else "base")
        if step and CASES[name].densities:
            _nudge(model, step, CASES[name].densities[step - 1])
        elif step:
            _change(model, step)
        model.save_pretrained(place, max_shard_size=CASES[name].shard_size)
        tokenizer.save_pretrained(place)
    checkpoints = [folder / f"step-{step}" for step in range(1, steps + 1)]
    _make_adapter(model, folder / "adapter")
    encode_run(folder / "base", checkpoints, folder / "run")
    return folder


def _make_adapter(model: PreTrainedModel, out: Path) -> None:
    """Make a LoRA adapter of rank 8, large enough that the greedy tokens differ."""
    random = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            place = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = weight.shape
            tensors[f"{place}.lora_A.weight"] = torch.randn(8, columns, generator=random) * 0.3
            tensors[f"{place}.lora_B.weight"] = torch.randn(rows, 8, generator=random) * 0.3
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors")
    modules = ["q_proj", "v_proj"]
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": modules}
    (out / "adapter_config.json").write_text(json.dumps(settings), "utf-8")


@torch.no_grad()
def _change(model: PreTrainedModel, seed: int) -> None:
    """Replace a part of the weights by others of the same size."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        chosen = torch.rand(parameter.shape, generator=random) < DENSITY
        fresh = torch.randn(parameter.shape, generator=random) * parameter.float().std()
        parameter[chosen] += fresh.to(parameter.dtype)[chosen] if parameter.dim() > 1 else 0.01


@torch.no_grad()
def _nudge(model: PreTrainedModel, seed: int, density: float) -> None:
    """Move a part of the weights to a neighbouring value, small ones first."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        words = parameter.view(torch.int16)
        is_small = parameter.abs() < parameter.abs().float().median()
        share = torch.where(is_small, 1.6 * density, 0.4 * density)
        chosen = torch.rand(parameter.shape, generator=random) < share
        up = torch.rand(parameter.shape, generator=random) < 0.5
        words.add_(torch.where(up, 1, -1).to(torch.int16) * (chosen & (parameter != 0)))


if __name__ == "__main__":
    make_case(sys.argv[2], Path(sys.argv[1]), int(sys.argv[3]))
