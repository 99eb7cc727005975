"""Models as tests tune them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def move_weights(model: PreTrainedModel, seed: int, density: float) -> None:
    """Move some weights of a bfloat16 model by one step."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        words = weight.detach().view(-1).view(torch.int16)
        words ^= (torch.rand(words.shape) < density).to(torch.int16)
