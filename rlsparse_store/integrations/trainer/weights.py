"""The weights that Trainer writes into a checkpoint, and the way back into the model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from rlsparse_store.errors import DtypeMismatchError, UnsupportedModelError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.dtensor import is_dtensor
from rlsparse_store.torch.model_tensors import named_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlsparse_store.delta.open import DeltaCheckpoint

__all__ = ["file_tensors", "restorable_tensors", "restore_weights", "untied_tensors"]

Tensors = dict[str, torch.Tensor]

_LOG = logging.getLogger(__name__)


def untied_tensors(model: torch.nn.Module, state_dict: Mapping[str, Any]) -> Tensors:
    """The tensors of a state dict that ``save_pretrained`` writes, by their names in the model.

    Args:
        model: The model.
        state_dict: Its state dict, which may be gathered.

    Returns:
        The tensors without those that are tied to another one or that the model leaves out.
    """
    tensors = dict(state_dict)
    if not isinstance(model, PreTrainedModel):
        return tensors
    for name in model._keys_to_ignore_on_save or ():  # noqa: SLF001 - as save_pretrained does
        tensors.pop(name, None)
    return remove_tied_weights_from_state_dict(tensors, model)


def file_tensors(model: torch.nn.Module, tensors: Tensors) -> Tensors:
    """These tensors by their names in a checkpoint: experts, for example, are split again.

    Args:
        model: The model.
        tensors: What :func:`untied_tensors` returned, or copies.
    """
    if not isinstance(model, PreTrainedModel):
        return tensors
    reverted: Tensors = revert_weight_conversion(model, tensors)
    return reverted


def restorable_tensors(model: torch.nn.Module) -> Tensors:
    """The model's weights by their names in a checkpoint, as views of the model's memory.

    Raises:
        UnsupportedModelError: A weight has no view, so that it could not be restored.
        RlsparseError: The model is wrapped or holds an adapter.
    """
    views = named_tensors(model)
    covered = {_memory(view) for view in views.values()}
    for name, weight in model.state_dict().items():
        is_part = isinstance(weight, torch.Tensor) and _own_part(weight).numel()
        if is_part and _memory(weight) not in covered:
            msg = (
                "is computed from several weights when the model is saved, and could not be "
                "restored from a delta: save full checkpoints, and encode them with rlsparse encode"
            )
            raise UnsupportedModelError(msg, tensor=printable(name))
    return views


def restore_weights(model: torch.nn.Module, checkpoint: DeltaCheckpoint) -> None:
    """Copy the weights of a delta into a model.

    Args:
        model: The model. If its weights are split over ranks, each rank calls this function.
        checkpoint: The open delta.

    Raises:
        UnsupportedModelError: The delta's tensors are not the model's.
        DtypeMismatchError: The model's dtype cannot hold the delta's values.
        FormatError: The delta is damaged, or the base is another checkpoint.
    """
    targets = restorable_tensors(model)
    restored, widened = set(), set()
    with torch.no_grad():
        for name in checkpoint:
            target = _target(checkpoint, name, targets)
            tensor = checkpoint.get_tensor(name)
            _own_part(target).copy_(_part_like(target, tensor))
            restored.add(_memory(target))
            if tensor.dtype != target.dtype:
                widened.add(tensor.dtype)
    if widened:
        rounded = ", ".join(sorted(map(str, widened)))
        _LOG.warning("%s holds weights in %s: this is not exact", checkpoint.path, rounded)
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    for name, target in targets.items():
        is_left = _own_part(target).numel() and _memory(target) not in restored
        if is_left and name not in ignored:
            msg = "is in the model and not in the delta: resume with the model that was saved"
            raise UnsupportedModelError(msg, file=checkpoint.path, tensor=printable(name))


def _target(checkpoint: DeltaCheckpoint, name: str, targets: Tensors) -> torch.Tensor:
    """The model's tensor for one of the delta's."""
    stored = checkpoint.get_slice(name)
    target = targets.get(name)
    if target is None or tuple(target.shape) != tuple(stored.get_shape()):
        shape = "missing" if target is None else str(list(target.shape))
        msg = (
            f"is {list(stored.get_shape())} in the delta and {shape} in the model: resume with the "
            "model that was saved"
        )
        raise UnsupportedModelError(msg, file=checkpoint.path, tensor=printable(name))
    # Exact where nothing is rounded, as from bfloat16 to float32.
    if torch.promote_types(target.dtype, stored.dtype) != target.dtype:
        msg = (
            f"is {stored.dtype} in the delta and {target.dtype} in the model, which would round "
            "it: load the model in the dtype that was saved"
        )
        raise DtypeMismatchError(msg, file=checkpoint.path, tensor=printable(name))
    return target


def _own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def _part_like(target: Any, tensor: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - maybe a DTensor
    """The part of a whole tensor that this rank holds of a target."""
    if not is_dtensor(target):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - only for these

    mesh, placements = target.device_mesh, target.placements
    # No communication: each rank has the whole tensor.
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def _memory(tensor: torch.Tensor) -> int:
    return _own_part(tensor).untyped_storage().data_ptr()
