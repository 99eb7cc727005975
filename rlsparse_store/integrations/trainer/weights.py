"""The weights that Trainer writes into a checkpoint, and the way back into the model."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from rlsparse_store.errors import DtypeMismatchError, UnsupportedModelError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.dtensor import is_dtensor
from rlsparse_store.torch.live_names import plain_names
from rlsparse_store.torch.model_tensors import named_tensors
from rlsparse_store.torch.weight_views import views_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from rlsparse_store.delta.open import DeltaCheckpoint
    from rlsparse_store.files.checkpoint import TensorRef

__all__ = [
    "LiveWeights",
    "file_tensors",
    "live_weights",
    "require_restorable",
    "restore_weights",
    "tied_beside",
    "untied_tensors",
]

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


def tied_beside(model: torch.nn.Module, sources: Mapping[str, TensorRef]) -> set[str]:
    """The names of weights that the model ties to others and the base does not hold besides.

    Args:
        model: The model.
        sources: The base tensors that its weights come from.
    """
    uses = Counter(source.name for source in sources.values())
    tied: Iterable[str] = getattr(model, "all_tied_weights_keys", None) or ()
    return {name for name in tied if name not in sources or uses[sources[name].name] > 1}


class LiveWeights(NamedTuple):
    """A model's weights by their names in a checkpoint.

    Attributes:
        tensors: The weights.
        trained: Names of those that are trained.
    """

    tensors: Tensors
    trained: Collection[str]


def live_weights(model: torch.nn.Module) -> LiveWeights:
    """A model's weights, as views of its memory.

    Raises:
        RlsparseError: The model is wrapped or holds an adapter.
    """
    views = named_tensors(model)
    trained = {_memory(p) for p in model.parameters() if p.requires_grad and _own_part(p).numel()}
    return LiveWeights(views, {name for name, view in views.items() if _memory(view) in trained})


def require_restorable(model: torch.nn.Module, views: Mapping[str, torch.Tensor]) -> None:
    """Require that all of a model's weights can be restored from a delta.

    Args:
        model: The model.
        views: Its weights, of :func:`live_weights`.

    Raises:
        UnsupportedModelError: A weight has no view.
    """
    covered = {_memory(view) for view in views.values()}
    for name, weight in model.state_dict().items():
        is_part = isinstance(weight, torch.Tensor) and _own_part(weight).numel()
        if is_part and _memory(weight) not in covered:
            msg = (
                "is computed from several weights when the model is saved, and could not be "
                "restored from a delta: save full checkpoints, and encode them with rlsparse encode"
            )
            raise UnsupportedModelError(msg, tensor=printable(name))


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
    left, restored, widened = set(checkpoint), set[int](), set[str]()
    weights = {n: t for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    missing = dict[str, torch.Tensor]()
    for name, weight in plain_names(weights).items():
        # A checkpoint's tensors (experts) are views of whole weights only.
        whole = torch.empty(weight.shape, dtype=weight.dtype) if is_dtensor(weight) else weight
        views = {name: whole}
        if isinstance(model, PreTrainedModel):
            views = views_of(model, name, whole)
        if views.keys().isdisjoint(checkpoint):
            missing[name] = weight
            continue
        for stored_name, view in views.items():
            tensor = _read_for(checkpoint, stored_name, view)
            view.detach().copy_(tensor)
            if tensor.dtype != view.dtype:
                widened.add(str(tensor.dtype))
        if whole is not weight:
            _own_part(weight).copy_(_part_like(weight, whole))
        restored.add(_memory(weight))
        left -= views.keys()
    _require_all(model, checkpoint, {n for n in missing if not _is_in(restored, missing[n])}, left)
    if widened:
        rounded = ", ".join(sorted(widened))
        _LOG.warning("%s holds weights in %s: this is not exact", checkpoint.path, rounded)


def _read_for(checkpoint: DeltaCheckpoint, name: str, target: torch.Tensor) -> torch.Tensor:
    """Read the tensor of a delta that belongs into a model's."""
    stored = checkpoint.get_slice(name) if name in checkpoint else None
    if stored is None or tuple(target.shape) != tuple(stored.get_shape()):
        shape = "missing" if stored is None else str(stored.get_shape())
        msg = (
            f"is {shape} in the delta and {list(target.shape)} in the model: resume with the model "
            "that was saved"
        )
        raise UnsupportedModelError(msg, file=checkpoint.path, tensor=printable(name))
    # Exact where nothing is rounded, as from bfloat16 to float32.
    if torch.promote_types(target.dtype, stored.dtype) != target.dtype:
        msg = (
            f"is {stored.dtype} in the delta and {target.dtype} in the model, which would round "
            "it: load the model in the dtype that was saved"
        )
        raise DtypeMismatchError(msg, file=checkpoint.path, tensor=printable(name))
    tensor: torch.Tensor = checkpoint.get_tensor(name)
    return tensor


def _require_all(
    model: torch.nn.Module, checkpoint: DeltaCheckpoint, missing: set[str], left: set[str]
) -> None:
    """Require that no weight of the model and no tensor of the delta is left."""
    missing -= set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    for names, where in (
        (missing, "in the model and not in the delta"),
        (left, "in the delta only"),
    ):
        if names:
            msg = f"is {where}: resume with the model that was saved"
            raise UnsupportedModelError(msg, file=checkpoint.path, tensor=printable(min(names)))


def _is_in(memory: set[int], tensor: torch.Tensor) -> bool:
    """Whether a tensor, as far as this rank holds it, lies in memory that was restored."""
    return not _own_part(tensor).numel() or _memory(tensor) in memory


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
