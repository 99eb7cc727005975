"""Models that DeepSpeed trains, of which ZeRO 3 splits the weights over ranks.

DeepSpeed keeps a state of its own in each checkpoint, weights and masters among it, and training
resumes from that. What Trainer saves beside it is gathered, and becomes a delta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from rlsparse_store.integrations.trainer.weights import LiveWeights
from rlsparse_store.torch.live_names import plain_names
from rlsparse_store.torch.weight_views import views_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import Trainer

__all__ = ["deepspeed_problem", "first_rows", "is_split", "trained_dtype"]


def deepspeed_problem(trainer: Trainer) -> str | None:
    """Why the weights that DeepSpeed trains cannot be stored as deltas, and the remedy; or None."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    if config.get("tensor_parallel", {}).get("autotp_size", 0) > 1:
        return "DeepSpeed splits its layers over ranks: leave tensor_parallel out of its settings"
    if plugin.zero_stage != 3:
        return None
    if config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save") is not True:
        return (
            "ZeRO 3 does not gather its weights when it is saved: set "
            '"stage3_gather_16bit_weights_on_model_save" to true in "zero_optimization" of '
            "DeepSpeed's settings (zero3_save_16bit_model in accelerate's)"
        )
    if trainer.args.save_on_each_node:
        return "ZeRO 3 gathers its weights on one rank: use save_on_each_node=False"
    return None


def trained_dtype(trainer: Trainer) -> torch.dtype | None:
    """The dtype that DeepSpeed gives all weights; None if they keep theirs."""
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled") is True:
            return dtype
    return None


def is_split(model: torch.nn.Module) -> bool:
    """Whether ZeRO 3 has split a model's weights already: it does so when it loads a model."""
    return any(_is_part(weight) for weight in model.parameters())


def first_rows(model: torch.nn.Module) -> LiveWeights:
    """What stands for the weights of a split model: tensors that repeat the first row of each.

    They have the weights' shapes and dtypes, and memory for one row. Each rank calls this function;
    the weights are gathered one after the other.
    """
    rows: dict[str, torch.Tensor] = {}
    trained: set[str] = set()
    weights = model.state_dict(keep_vars=True)
    tensors = {name: t for name, t in weights.items() if isinstance(t, torch.Tensor)}
    for name, weight in plain_names(tensors).items():
        for target, view in _gathered_views(model, name, weight):
            rows[target] = _first_row(view)
            if weight.requires_grad:
                trained.add(target)
    return LiveWeights(rows, trained)


def _gathered_views(
    model: torch.nn.Module, name: str, weight: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    from deepspeed import zero  # noqa: PLC0415 - only where it trains

    with zero.GatheredParameters([weight] if _is_part(weight) else []):
        views = {name: weight.data}
        if isinstance(model, PreTrainedModel):
            views = views_of(model, name, weight.data)
        yield from views.items()


def _first_row(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.numel():
        return torch.empty_like(tensor)
    row = tensor[(0,) * (tensor.ndim - 1)] if tensor.ndim else tensor
    return row.clone().expand(tensor.shape)


def _is_part(weight: Any) -> bool:  # noqa: ANN401 - a tensor, with what DeepSpeed adds to it
    return hasattr(weight, "ds_id")
