"""What cannot be stored as deltas, and is refused before training."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from rlsparse_store.delta.plausibility import structure_warnings
from rlsparse_store.errors import (
    DtypeMismatchError,
    ImplausibleError,
    RlsparseError,
    UnsupportedModelError,
)
from rlsparse_store.format.names import printable
from rlsparse_store.frameworks.torch import Torch, code_of
from rlsparse_store.pipeline.tensor_matching import find_sources
from rlsparse_store.torch.state_dict import live_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef

__all__ = [
    "require_base",
    "require_dtypes",
    "require_hooks",
    "require_settings",
    "require_whole_model",
]

_HOOKS: Final = {
    "save_model": ("output_dir", "_internal_call"),
    "_save": ("output_dir", "state_dict"),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_best_model": (),
}
"""Methods of Trainer, of which some are private, and their arguments."""

_DIFFERENT: Final = 0.98
"""Share of changed weights that tuning reaches rarely, and another base always."""


def require_hooks() -> None:
    """Require that this version of transformers has the methods that deltas need.

    Raises:
        RlsparseError: One is missing or takes other arguments.
    """
    for name, expected in _HOOKS.items():
        method = getattr(Trainer, name, None)
        names = () if method is None else tuple(inspect.signature(method).parameters)[1:]
        if method is None or names != expected:
            msg = (
                f"this version of transformers has no Trainer.{name}({', '.join(expected)}): store "
                "finished checkpoints with rlsparse watch instead"
            )
            raise RlsparseError(msg)


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
    if trainer.is_deepspeed_enabled:
        problem = "its weights are split over ranks by DeepSpeed"
    elif trainer.is_fsdp_enabled and not _gathers(trainer):
        problem = (
            'FSDP saves the parts of the ranks: set "version": 2 and "state_dict_type": '
            '"FULL_STATE_DICT" in fsdp_config'
        )
    elif getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        problem = "only its adapter (PEFT) is trained and saved, which is small"
    elif getattr(model, "hf_quantizer", None) is not None:
        problem = "it is quantised"
    elif getattr(model, "_tp_size", None) or trainer.is_distributed_loading_by_transformers:
        problem = "its weights are split over ranks (distributed_config, tp_plan)"
    if problem:
        msg = f"the model cannot be stored as deltas: {problem}; save checkpoints as they are"
        raise UnsupportedModelError(msg)


def _gathers(trainer: Trainer) -> bool:
    """Whether Trainer gathers the weights of FSDP when it saves."""
    plugin = trainer.accelerator.state.fsdp_plugin
    return trainer.accelerator.is_fsdp2 and "FULL_STATE_DICT" in str(plugin.state_dict_type)


def require_base(base: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorRef]:
    """Require that a model was probably loaded from its base.

    Args:
        base: The base.
        tensors: The model's weights, by their names in a checkpoint.

    Returns:
        The base tensors that the weights come from, by the weights' names.

    Raises:
        ImplausibleError: The model is not one of this base, as names, shapes or values show.
    """
    tuned = live_checkpoint(tensors)
    sources = find_sources(base, tuned)
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
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    sources: Mapping[str, TensorRef],
    cast: str | None,
    *,
    in_float32: bool,
) -> None:
    """Require that weights which are trained have the base's dtype, or that they are rounded to it.

    Weights that are not trained may be exact copies in float32.

    Args:
        model: The model.
        tensors: Its weights, by their names in a checkpoint.
        sources: The base tensors that they come from.
        cast: As for :meth:`DeltaEncoder.encode`.
        in_float32: Whether the trainer converts trained weights to float32 later.

    Raises:
        DtypeMismatchError: A weight has another dtype.
    """
    trained = {
        p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad and p.numel()
    }
    for name, source in sources.items():
        tensor, code = tensors[name], source.dtype.code
        is_frozen = tensor.untyped_storage().data_ptr() not in trained
        own = "F32" if in_float32 and not is_frozen else code_of(tensor.dtype)
        is_widened = own == "F32" and code in {"BF16", "F16"}
        if own == code or (is_widened and (is_frozen or (cast and code == "BF16"))):
            continue
        remedy = 'load it with dtype="auto"'
        if is_widened and code == "BF16":
            remedy += ', or pass cast="bf16", which rounds it and keeps the newest checkpoints full'
        msg = f"is trained in {own}, and {code} in the base: {remedy}"
        raise DtypeMismatchError(msg, tensor=printable(name))
