"""Models as tests tune them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def move_weights(model: PreTrainedModel, seed: int, density: float) -> None:
    """Move some weights of a bfloat16 model by one step."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        words = weight.detach().view(-1).view(torch.int16)
        words ^= (torch.rand(words.shape) < density).to(torch.int16)


def small_llama() -> LlamaForCausalLM:
    """A bfloat16 model of a layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16)  # type: ignore[no-any-return]
