"""``enable_transformers``: ``from_pretrained`` of a delta's name, wherever it is called."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import transformers
from transformers import modeling_utils

from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import NotFoundError, RlsparseError
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.transformers.device_map import only_device
from rlsparse_store.integrations.transformers.load import open_for_model
from rlsparse_store.integrations.transformers.unsupported import check_deepspeed, check_quantization

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from rlsparse_store.delta.open import DeltaCheckpoint

__all__ = ["enable_transformers"]

_FIND: Final = "_get_resolved_checkpoint_files"
_LOAD: Final = "_load_pretrained_model"
_MARK: Final = "_rlsparse_store"

_NEEDED: Final = {
    _FIND: {"pretrained_model_name_or_path", "download_kwargs"},
    _LOAD: {"model", "state_dict", "checkpoint_files", "load_config"},
}
"""Arguments that are relied on. Neither function is public, so their shape is checked first."""


def enable_transformers() -> None:
    """Let ``from_pretrained`` of transformers load deltas by their name.

    Afterwards ``AutoModelForCausalLM.from_pretrained("me/delta")``, ``pipeline`` and whatever else
    loads a model take a delta where they take a checkpoint: where they find no weights, the delta
    is looked for, and its base as with ``from_delta(None, …)``. Without this call such a load
    stops with an error that says that there are no weights. It lasts as long as the process, and
    may be called again.

    Raises:
        RlsparseError: This version of transformers loads models in another way.

    Example:
        >>> enable_transformers()  # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("me/qwen2.5-7b-grpo")  # doctest: +SKIP
    """
    find = getattr(modeling_utils, _FIND, None)
    load = getattr(modeling_utils.PreTrainedModel, _LOAD, None)
    if hasattr(find, _MARK):
        return
    for name, function in ((_FIND, find), (_LOAD, load)):
        if function is None or not _NEEDED[name] <= set(inspect.signature(function).parameters):
            msg = (
                f"transformers {transformers.__version__} loads models in a way that is not known "
                "here; use from_delta, which needs none of its inner parts"
            )
            raise RlsparseError(msg)
    assert find is not None  # noqa: S101 - checked above
    assert load is not None  # noqa: S101 - as above
    setattr(modeling_utils, _FIND, _finding(find))
    setattr(modeling_utils.PreTrainedModel, _LOAD, staticmethod(_loading(load)))


def _finding(find: Callable[..., Any]) -> Callable[..., Any]:
    """Where no weights are found, but a delta, give no files; :func:`_loading` sees that."""

    @functools.wraps(find)
    def find_or_delta(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        try:
            return find(*args, **kwargs)
        except OSError:
            call = inspect.signature(find).bind(*args, **kwargs).arguments
            place = call["pretrained_model_name_or_path"]
            tuned = None
            is_other = call.get("variant") is not None or call.get("gguf_file") is not None
            if place is not None and not is_other:
                # Only its names and dtypes are looked at here.
                tuned = _open(place, call.get("download_kwargs"), "none")
            if tuned is None:
                raise
            with tuned:
                # What transformers takes from the weights if the configuration does not say it.
                get_state_dict_dtype: Any = modeling_utils.get_state_dict_dtype
                return None, {"dtype": get_state_dict_dtype(tuned.slices())}

    setattr(find_or_delta, _MARK, True)
    return find_or_delta


def _loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """Where there is neither file nor state dict, load the delta of the name."""

    @functools.wraps(load)
    def load_or_delta(
        model: Any,  # noqa: ANN401 - passed on
        state_dict: Any,  # noqa: ANN401 - passed on
        checkpoint_files: Any,  # noqa: ANN401 - passed on
        load_config: Any,  # noqa: ANN401 - passed on
        *args: Any,  # noqa: ANN401 - passed on
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> Any:  # noqa: ANN401 - passed on
        place = load_config.pretrained_model_name_or_path
        if state_dict is not None or checkpoint_files is not None or place is None:
            return load(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        device = only_device(load_config.device_map)
        tuned = _open(place, load_config.download_kwargs, "touched", device)
        if tuned is None:
            msg = "the delta is gone that was here a moment ago"
            raise NotFoundError(msg, file=place)
        with tuned:
            check_deepspeed()
            check_quantization(model.config, tuned.path)
            loaded = load(model, tuned.slices(), None, load_config, *args, **kwargs)
            tuned.check_unchanged()
            return loaded

    return load_or_delta


def _open(
    place: Any,  # noqa: ANN401 - theirs
    download: Any,  # noqa: ANN401 - theirs
    verify: str,
    device: torch.device | None = None,
) -> DeltaCheckpoint | None:
    """The delta at a place, or ``None`` if there is none."""
    download = download or {}
    access = HubAccess(
        token=download.get("token"),
        cache_dir=download.get("cache_dir"),
        local_files_only=bool(download.get("local_files_only")),
    )
    name = place if isinstance(place, str) else Path(place)
    revision = None if Path(place).exists() else download.get("revision")
    try:
        folder = find_delta(name, revision, download.get("subfolder") or "", access)
    except NotFoundError:
        return None
    if not (folder / DELTA_FOLDER).is_dir():
        return None
    return open_for_model(folder, None, None, access, verify, device)
