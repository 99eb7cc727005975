"""A loaded model's weights under the names they have in a checkpoint.

Transformers renames and fuses weights while it loads them, experts of one layer into one tensor for
example, and undoes that while it saves. What saving would do is asked of transformers itself; where
it only selects and rearranges, the result is a view of the model's own memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import revert_weight_conversion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["checkpoint_views"]


def checkpoint_views(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors that ``save_pretrained`` would write, as views of the model's weights.

    Args:
        model: The model. Its weights must not be split over devices.

    Returns:
        Tensors by their names in the checkpoint, each sharing the model's memory. A weight that
        is computed from several of the model's, or not a plain rearrangement, is left out.

    Example:
        >>> checkpoint_views(model)["model.layers.0.mlp.experts.3.up_proj.weight"].shape
        ... # doctest: +SKIP
        torch.Size([768, 2048])
    """
    views: dict[str, torch.Tensor] = {}
    ambiguous: set[str] = set()
    weights = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    for name, weight in weights.items():
        for target, view in _views_of(model, name, weight).items():
            if target in views and not _is_same(views[target], view):
                ambiguous.add(target)
            views[target] = view
    return {name: view for name, view in views.items() if name not in ambiguous}


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    places = [(t.data_ptr(), t.shape, t.stride()) for t in (one, other)]
    return places[0] == places[1]


def _views_of(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401 - theirs
    """What saving makes of one weight, as views of it."""
    # A weight that is only renamed comes back as the very object that went in.
    probe = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    try:
        parts = _reverted(model, name, probe)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        # It is one of several that only make sense together.
        return {}
    if all(part is probe for part in parts.values()):
        return dict.fromkeys(parts, weight)
    # Of any other it is asked where its elements go: their positions are sent instead of them.
    kind = torch.int32 if weight.numel() < 2**31 else torch.int64
    positions = torch.arange(weight.numel(), dtype=kind).view(weight.shape)
    moved = _reverted(model, name, positions)
    views = {target: _view_at(weight, part) for target, part in moved.items()}
    return {target: view for target, view in views.items() if view is not None}


def _reverted(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401 - theirs
    parts: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: weight})
    return parts


def _view_at(weight: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    """The view of a weight whose elements are the ones at these positions, if there is one."""
    if not weight.is_contiguous() or not math.prod(positions.shape):
        return None
    first = int(positions.flatten()[0])
    strides = []
    for dim, size in enumerate(positions.shape):
        step = positions.select(dim, min(1, size - 1)).flatten()[0] if size > 1 else first
        strides.append(int(step) - first)
    expected = torch.full((), first, dtype=positions.dtype)
    for dim, (size, stride) in enumerate(zip(positions.shape, strides, strict=True)):
        along = torch.arange(size, dtype=positions.dtype) * stride
        expected = expected + along.view(-1, *[1] * (positions.ndim - dim - 1))
    if min(strides, default=0) < 0 or not torch.equal(expected, positions):
        return None
    return torch.as_strided(weight, positions.shape, strides, weight.storage_offset() + first)
