"""What cannot be stored as deltas, and is refused before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.trainer_utils import HubStrategy

from rlsparse_store.delta.plausibility import structure_warnings
from rlsparse_store.errors import (
    DtypeMismatchError,
    ImplausibleError,
    RlsparseError,
    UnsupportedModelError,
)
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.names import printable
from rlsparse_store.frameworks.torch import LiveTensor, Torch, code_of
from rlsparse_store.integrations.trainer.deepspeed import deepspeed_problem
from rlsparse_store.pipeline.tensor_matching import find_sources
from rlsparse_store.torch.state_dict import dtype_and_shape, live_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import Trainer

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.integrations.trainer.weights import LiveWeights

__all__ = [
    "require_base",
    "require_dtypes",
    "require_settings",
    "require_whole_model",
]

_DIFFERENT: Final = 0.98
"""Share of changed weights that tuning reaches rarely, and another base always."""


def require_settings(args: Any, *, keep: int, background: bool) -> None:  # noqa: ANN401 - TrainingArguments
    """Require settings of Trainer that work with deltas.

    Args:
        args: The settings.
        keep: Number of the newest checkpoints that stay full.
        background: Whether a thread encodes.

    Raises:
        RlsparseError: A setting does not work.
    """
    # Trainer never removes the newest checkpoint and the best one.
    least = 2 if args.metric_for_best_model is None else 3
    limit = args.save_total_limit or least
    if background and not keep and 0 < limit < least:
        msg = (
            f"save_total_limit={limit} removes the checkpoint to resume from before the delta of "
            f"the new one is complete: use save_total_limit={least}, keep=1 or background=False"
        )
        raise RlsparseError(msg)
    if not args.push_to_hub:
        return
    strategy = HubStrategy(args.hub_strategy)
    if strategy is HubStrategy.EVERY_SAVE and not keep:
        msg = (
            'hub_strategy="every_save" pushes the full weights of each checkpoint: use keep=1 or '
            'hub_strategy="end"'
        )
        raise RlsparseError(msg)
    pushes_folders = strategy in {HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS}
    if pushes_folders and (background or keep):
        msg = (
            f'hub_strategy="{strategy.value}" pushes checkpoints before their deltas are complete: '
            'use background=False and keep=0, or hub_strategy="end"'
        )
        raise RlsparseError(msg)


def require_whole_model(trainer: Trainer, model: torch.nn.Module) -> None:
    """Require a model whose weights are whole when they are saved and are not an adapter's.

    Raises:
        UnsupportedModelError: The model is another.
    """
    problem = None
    if trainer.is_deepspeed_enabled and deepspeed_problem(trainer):
        problem = deepspeed_problem(trainer)
    elif trainer.is_fsdp_enabled and not _gathers(trainer):
        problem = (
            'FSDP saves the parts of the ranks: set "version": 2 and "state_dict_type": '
            '"FULL_STATE_DICT" in fsdp_config'
        )
    elif trainer.is_fsdp_enabled and trainer.args.save_on_each_node:
        problem = "FSDP gathers its weights on one rank: use save_on_each_node=False"
    elif getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        problem = "only its adapter (PEFT) is trained and saved, which is small"
    elif getattr(model, "hf_quantizer", None) is not None:
        problem = "it is quantised"
    elif getattr(model, "_tp_size", None) or getattr(
        # 5.0 has none.
        trainer,
        "is_distributed_loading_by_transformers",
        False,
    ):
        problem = "its weights are split over ranks (distributed_config, tp_plan)"
    if problem:
        msg = f"the model cannot be stored as deltas: {problem}; save checkpoints as they are"
        raise UnsupportedModelError(msg)


def _gathers(trainer: Trainer) -> bool:
    """Whether Trainer gathers the weights of FSDP when it saves."""
    plugin = trainer.accelerator.state.fsdp_plugin
    return trainer.accelerator.is_fsdp2 and "FULL_STATE_DICT" in str(plugin.state_dict_type)


def require_base(
    base: Checkpoint, tensors: Mapping[str, torch.Tensor], *, are_whole: bool
) -> dict[str, TensorRef]:
    """Require that a model was probably loaded from its base.

    Args:
        base: The base.
        tensors: The model's weights, by their names in a checkpoint.
        are_whole: Whether more of them can be read than shape, dtype and first row.

    Returns:
        The base tensors that the weights come from, by the weights' names.

    Raises:
        ImplausibleError: The model is not one of this base, as names, shapes or values show.
    """
    tuned = live_checkpoint(tensors) if are_whole else _outline(tensors)
    sources = find_sources(base, tuned, by_content=are_whole)
    problems = structure_warnings(base, tuned, sources, force=True)
    if problems:
        msg = f"the model {problems[0].removesuffix(': is it the base that this was tuned from?')}"
        msg += ": give the checkpoint that it was loaded from as base"
        raise ImplausibleError(msg, file=base.path)
    different, total = _compare_rows(base, tensors, sources)
    if total and different >= _DIFFERENT * total:
        msg = (
            f"{different} of {total} weights that were compared differ from the model's: give the "
            "checkpoint that it was loaded from as base"
        )
        raise ImplausibleError(msg, file=base.path)
    return sources


def _outline(tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """A checkpoint of these tensors of which nothing is read but names, shapes and dtypes."""
    unread = torch.empty(0, dtype=torch.uint8)
    shapes = {name: dtype_and_shape(name, tensor) for name, tensor in tensors.items()}
    return checkpoint_in_memory(
        {name: LiveTensor(unread, *found) for name, found in shapes.items()}
    )


def _compare_rows(
    base: Checkpoint, tensors: Mapping[str, torch.Tensor], sources: Mapping[str, TensorRef]
) -> tuple[int, int]:
    """Compare the first row of each matrix: vectors are alike in different models.

    Returns:
        Numbers of different and of all elements in these rows.
    """
    different = total = 0
    for name, source in sources.items():
        tensor = tensors[name]
        if tensor.ndim < 2 or not tensor.numel() or tensor.shape[1:] != source.shape[1:]:
            continue
        row = tensor.detach()[(0,) * (tensor.ndim - 1)].cpu()
        data = torch.empty(source.nbytes // source.shape[0], dtype=torch.uint8)
        base.read_into(source, 0, data.numpy())
        first = Torch().array(data, source.dtype, source.shape[1:]).reshape(-1)[: len(row)]
        unequal = _words(row.to(first.dtype)) != _words(first)
        different += int(unequal.any(dim=1).sum())
        total += len(row)
    return different, total


def _words(row: torch.Tensor) -> torch.Tensor:
    """The bytes of each element."""
    return row.contiguous().view(torch.uint8).view(len(row), -1)


def require_dtypes(
    weights: LiveWeights,
    sources: Mapping[str, TensorRef],
    cast: str | None,
    *,
    in_float32: bool,
    dtype: torch.dtype | None,
    remedy: str,
) -> None:
    """Require that weights which are trained have the base's dtype, or that they are rounded to it.

    Weights that are not trained may be exact copies in float32.

    Args:
        weights: The model's weights.
        sources: The base tensors that they come from.
        cast: As for :meth:`DeltaEncoder.encode`.
        in_float32: Whether the trainer converts trained weights to float32 later.
        dtype: The dtype to which it converts all weights later, if it does.
        remedy: What gives the weights another dtype, for messages.

    Raises:
        DtypeMismatchError: A weight has another dtype.
    """
    for name, source in sources.items():
        tensor, code = weights.tensors[name], source.dtype.code
        is_frozen = name not in weights.trained
        own = "F32" if in_float32 and not is_frozen else code_of(tensor.dtype)
        if dtype is not None and tensor.is_floating_point():
            own = code_of(dtype)
        is_widened = own == "F32" and code in {"BF16", "F16"}
        if own == code or (is_widened and (is_frozen or (cast and code == "BF16"))):
            continue
        rounding = ', or pass cast="bf16", which rounds it' if is_widened and code == "BF16" else ""
        msg = f"is trained in {own}, and {code} in the base: {remedy}{rounding}"
        raise DtypeMismatchError(msg, tensor=printable(name))
