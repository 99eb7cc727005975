"""A small model, and what tests do to models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rlsparse_store.torch import Mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def move_weights(model: PreTrainedModel, seed: int, density: float) -> None:
    """Flip the lowest bit of some weights of a bfloat16 model."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        words = weight.detach().view(-1).view(torch.int16)
        words ^= (torch.rand(words.shape) < density).to(torch.int16)


def small_llama(*, tied: bool = False) -> LlamaForCausalLM:
    """Return a bfloat16 model with one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16)  # type: ignore[no-any-return]


def moe() -> Any:  # noqa: ANN401 - a model of transformers
    """Return a model whose experts transformers fuses."""
    torch.manual_seed(0)
    config: Any = Qwen3MoeConfig(  # type: ignore[call-arg]
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
    )
    model: Any = Qwen3MoeForCausalLM(config)
    return model.to(torch.bfloat16)


def half_of(model: torch.nn.Module) -> Mask:
    """Return a mask of half the weights of all parameters except the last one."""
    torch.manual_seed(5)
    packed, shapes = {}, {}
    for name, parameter in list(model.named_parameters())[:-1]:
        flags = (torch.rand(parameter.numel()) < 0.5).numpy()
        packed[name] = torch.from_numpy(np.packbits(flags, bitorder="little"))
        shapes[name] = tuple(parameter.shape)
    return Mask(packed, shapes)


def adamw(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
