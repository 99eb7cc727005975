"""Weights to measure on, made on the device."""

from __future__ import annotations

from typing import Final

import torch

Tensors = dict[str, torch.Tensor]

MOST_WORDS: Final = 1 << 26
"""Words of a tensor at most: those of a span, as the coder cuts large tensors."""

ROW: Final = 4096
"""Words of a row."""


def make_base(device: torch.device, nbytes: int) -> Tensors:
    """About so many bytes of Gaussian bfloat16."""
    torch.manual_seed(0)
    words = nbytes // 2
    each = min(words, MOST_WORDS)
    shape = max(1, each // ROW), min(ROW, each)
    return {
        f"layers.{n}.weight": (torch.randn(shape, device=device) * 0.02).bfloat16()
        for n in range(-(-words // each))
    }


def tune(base: Tensors, density: float) -> Tensors:
    """Move weights in float32 by so much that this share of them changes when rounded."""
    scale = _scale(next(iter(base.values())), density)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        wide = tensor.float()
        return wide.add_(torch.randn_like(wide), alpha=scale).bfloat16()

    return {name: move(tensor) for name, tensor in base.items()}


def _scale(tensor: torch.Tensor, density: float) -> float:
    """By how much weights move, found on some of them by halving."""
    sample = tensor.view(-1)[: 1 << 22].float()
    noise = torch.randn_like(sample)
    low, high = 1e-9, 1.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        moved = (sample + middle * noise).bfloat16() != sample.bfloat16()
        low, high = (middle, high) if moved.float().mean() < density else (low, middle)
    return low


def size_of(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes where they are: floats would say that a NaN is not itself, and that -0 is 0."""
    return tensor.view(-1).view(torch.uint8)


def are_same(one: Tensors, other: Tensors) -> bool:
    """Whether all bits are."""
    return all(torch.equal(bits_of(tensor), bits_of(other[name])) for name, tensor in one.items())


def changed_words(base: Tensors, tuned: Tensors) -> dict[str, int]:
    """How many words of each tensor changed."""
    return {name: int((tuned[name] != tensor).sum()) for name, tensor in base.items()}
