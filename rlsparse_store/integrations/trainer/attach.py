"""``store_as_deltas``: lets a trainer store its checkpoints as deltas."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import Trainer

from rlsparse_store.delta.open import open_delta
from rlsparse_store.delta.resolve import find_checkpoint
from rlsparse_store.errors import RlsparseError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.trainer.deepspeed import first_rows, is_split, trained_dtype
from rlsparse_store.integrations.trainer.folder_lock import require_free
from rlsparse_store.integrations.trainer.hooks import DeltaHooks
from rlsparse_store.integrations.trainer.refusals import (
    require_base,
    require_dtypes,
    require_settings,
    require_whole_model,
)
from rlsparse_store.integrations.trainer.store import CheckpointStore
from rlsparse_store.integrations.trainer.trainer_methods import require_methods
from rlsparse_store.integrations.trainer.weights import (
    live_weights,
    require_restorable,
    tied_beside,
    untied_tensors,
)
from rlsparse_store.torch.encoder import DeltaEncoder

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.files.checkpoint import TensorRef

__all__ = ["store_as_deltas"]

_LOG = logging.getLogger(__name__)


def store_as_deltas(  # noqa: PLR0913 - Hub options as in from_pretrained
    trainer: Any,  # noqa: ANN401 - any trainer
    base: str | PathLike[str],
    *,
    cast: Literal["bf16"] | None = None,
    keep: int | None = None,
    background: bool = True,
    queue: int = 2,
    threads: int | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> None:
    """Let a trainer store the weights of its checkpoints as deltas.

    Call it between making the trainer and ``train()``. Each ``checkpoint-N`` then holds the delta
    of its weights, in ``rlsparse/``, in place of ``model.safetensors``; everything else is as
    Trainer writes it. So each checkpoint is a delta's folder, which :func:`from_delta` and vLLM
    load. ``train(resume_from_checkpoint=...)`` and ``load_best_model_at_end`` read the deltas;
    ``save_model()`` and ``push_to_hub()`` write full weights.

    Training waits only for a copy of the weights to main memory, which holds one copy. A thread
    encodes it. If it is still busy at the next save, Trainer saves full weights, which the thread
    replaces later. An error of the thread is raised at the next save or at the end of ``train()``.
    At SIGTERM, the delta in work is completed first.

    Resuming is exact: a delta restores every bit, and Trainer's own files the rest. With ``cast``,
    it is exact only from the newest ``keep`` checkpoints, which stay full. With DeepSpeed, it is
    exact from all of them: training resumes from a state that DeepSpeed saves besides.

    Args:
        trainer: A trainer of transformers or TRL. Its model is whole on each rank, split by FSDP2
            with ``FULL_STATE_DICT``, or trained by DeepSpeed. All ranks call this function.
        base: The checkpoint that the model was loaded from: a folder, a ``.safetensors`` file or
            ``org/name[@revision]``.
        cast: ``"bf16"`` rounds float32 weights over a bfloat16 base. Lossy, and recorded.
        keep: Number of the newest checkpoints that stay full until there are newer ones; defaults
            to 0, and with ``cast`` to 1, which is the least. With DeepSpeed, to 0 in any case.
        background: Whether a thread encodes. Otherwise training waits for the delta, which is
            encoded from the weights where they are.
        queue: Number of full checkpoints that may wait for the thread before training does; 0 with
            FSDP.
        threads: Number of the encoder's own threads; defaults to all processors.
        base_revision: Branch, tag or commit of the base on the Hub, if the id does not name one.
        token: Access token for the Hub; defaults to the stored one.
        cache_dir: Cache folder of the Hub; defaults to that of ``huggingface_hub``.
        local_files_only: Use only the cache and make no requests.

    Raises:
        TypeError: This is not a trainer of transformers.
        ValueError: A number is too small.
        NotFoundError: The base does not exist.
        ImplausibleError: The model was not loaded from this base.
        DtypeMismatchError: The model is trained in another dtype than the base's, without ``cast``.
        UnsupportedModelError: The model is an adapter, quantised or split over ranks in another
            way.
        RunLockedError: Another process trains into the trainer's folder.
        RlsparseError: A setting of the trainer, or an installed release, does not work with deltas.

    Example:
        >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", ...)  # doctest: +SKIP
        >>> store_as_deltas(trainer, "Qwen/Qwen3-0.6B")  # doctest: +SKIP
        >>> trainer.train(resume_from_checkpoint=True)  # doctest: +SKIP
    """
    if not isinstance(trainer, Trainer):
        msg = f"{type(trainer).__name__} is not a Trainer of transformers or TRL"
        raise TypeError(msg)
    if isinstance(trainer, DeltaHooks):
        msg = "this trainer stores its checkpoints as deltas already"
        raise RlsparseError(msg)
    # Of its own state, DeepSpeed rounds nothing.
    least = 1 if cast and not trainer.is_deepspeed_enabled else 0
    keep = least if keep is None else keep
    if keep < least or queue < 0:
        msg = f"keep={keep}, queue={queue}: keep is at least {least} here, and queue at least 0"
        raise ValueError(msg)
    require_methods(type(trainer))
    require_settings(trainer.args, keep=keep, background=background)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    require_whole_model(trainer, model)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    path = find_checkpoint(base, "base", access, base_revision)
    sources = _require_weights_of(trainer, model, path, cast)
    # Trainer may save a tied weight twice. Nothing would round the one that the base lacks.
    left_out = tied_beside(model, sources) if cast else ()
    encoder = DeltaEncoder(path, threads=threads)
    # All ranks take part in saving full weights with FSDP: none may decide alone to do that.
    waiting = 0 if trainer.is_fsdp_enabled else queue
    store = CheckpointStore(
        encoder, cast=cast, keep=keep, queue=waiting if background else None, left_out=left_out
    )
    if trainer.args.should_save:
        require_free(Path(trainer.args.output_dir or "."))
    if trainer.args.should_save and not trainer.is_deepspeed_enabled:
        store.prepare(untied_tensors(model, model.state_dict()))
    own = type(trainer)
    # TRL and model cards use the names of classes.
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    hooked: Any = trainer
    hooked.__class__ = type(own.__name__, (DeltaHooks, own), names)
    hooked.delta_store = store
    hooked.open_delta = partial(open_delta, base=path)
    _say_what_resumes(cast, None if trainer.is_deepspeed_enabled else keep)


def _require_weights_of(
    trainer: Any,  # noqa: ANN401 - as above
    model: Any,  # noqa: ANN401 - any model
    base: Path,
    cast: str | None,
) -> dict[str, TensorRef]:
    """Require that the weights are the base's, and fit into deltas of it.

    Returns:
        The base tensors that they come from, by the weights' names.
    """
    split = is_split(model)
    weights = first_rows(model) if split else live_weights(model)
    if not trainer.is_deepspeed_enabled:
        require_restorable(model, weights.tensors)
    with open_checkpoint(base) as opened:
        sources = require_base(opened, weights.tensors, are_whole=not split)
    # FSDP with mixed precision trains float32 masters of any model.
    in_float32 = trainer.is_fsdp_enabled and trainer.accelerator.mixed_precision != "no"
    dtype, remedy = None, 'load it with dtype="auto"'
    if trainer.is_deepspeed_enabled:
        dtype = trained_dtype(trainer)
        remedy = "train it in that (bf16=True, with which DeepSpeed keeps float32 masters itself)"
    require_dtypes(weights, sources, cast, in_float32=in_float32, dtype=dtype, remedy=remedy)
    return sources


def _say_what_resumes(cast: str | None, full: int | None) -> None:
    """Log from which checkpoints resuming is exact.

    Args:
        cast: What rounds the weights.
        full: Number of the newest checkpoints that stay full; None if training resumes from a state
            that DeepSpeed saves besides.
    """
    if cast is None:
        _LOG.info("checkpoints become deltas; resuming from any of them is exact")
    elif full is None:
        _LOG.warning(
            "checkpoints become deltas of weights rounded to bfloat16; resuming is exact, from the "
            "state that DeepSpeed saves beside them"
        )
    else:
        _LOG.warning(
            "checkpoints become deltas of weights rounded to bfloat16; resuming is exact from the "
            "newest %d, which stay full, and not from older ones",
            full,
        )
