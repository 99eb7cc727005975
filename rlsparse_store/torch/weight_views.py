"""A loaded model's weights under their checkpoint names.

Transformers renames and fuses weights when it loads them (for example, the experts of a layer
become one tensor) and reverts this when it saves them. This module runs the reversion on element
positions: if it only selects and rearranges, the result is a view of the model's memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.dtensor import is_dtensor
from rlsparse_store.torch.live_names import plain_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["checkpoint_views", "views_of"]


def checkpoint_views(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors that ``save_pretrained`` would write, as views of the model's weights.

    Args:
        model: The model. Its weights must not be sharded over devices.

    Returns:
        Tensors by checkpoint name, each sharing the model's memory. Tensors that are not a plain
        rearrangement of one weight are omitted.

    Example:
        >>> checkpoint_views(model)["model.layers.0.mlp.experts.3.up_proj.weight"].shape
        ... # doctest: +SKIP
        torch.Size([768, 2048])
    """
    views: dict[str, torch.Tensor] = {}
    ambiguous: set[str] = set()
    weights = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    for name, weight in plain_names(weights).items():
        for target, view in views_of(model, name, weight).items():
            if target in views and not _is_same(views[target], view):
                ambiguous.add(target)
            views[target] = view
    return {name: view for name, view in views.items() if name not in ambiguous}


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    views = [(t.data_ptr(), t.shape, t.stride()) for t in (one, other)]
    return views[0] == views[1]


def views_of(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401 - any model
    """Return views of one weight by the names under which it is saved.

    Args:
        model: The model of transformers.
        name: The weight's name in it.
        weight: The weight, or any tensor of its dimensions.

    Returns:
        Views by name; none if the conversion needs several weights at once.

    Raises:
        RlsparseError: The weight is split over ranks, and saving takes it apart.
    """
    # Renaming alone returns the same object.
    probe = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    try:
        parts = _revert(model, name, probe)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        # The conversion needs several weights at once.
        return {}
    if all(part is probe for part in parts.values()):
        return dict.fromkeys(parts, weight)
    if is_dtensor(weight):
        msg = (
            "is split over ranks, and a checkpoint holds its parts (experts) one by one: gather "
            "the model first (FULL_STATE_DICT)"
        )
        raise RlsparseError(msg, tensor=printable(name))
    # Convert the positions of the elements to see where each element goes.
    dtype = torch.int32 if weight.numel() < 2**31 else torch.int64
    positions = torch.arange(weight.numel(), dtype=dtype).view(weight.shape)
    reverted = _revert(model, name, positions)
    views = {target: _view_at(weight, part) for target, part in reverted.items()}
    return {target: view for target, view in views.items() if view is not None}


def _revert(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401 - any model
    parts: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: weight})
    return parts


def _view_at(weight: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    """Return the view of a weight with the elements at these positions, if there is one."""
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
