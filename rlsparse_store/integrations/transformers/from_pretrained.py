"""``enable_transformers``: lets ``from_pretrained`` load deltas."""

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
from rlsparse_store.integrations.transformers.device_map import single_device
from rlsparse_store.integrations.transformers.load import open_for_model
from rlsparse_store.integrations.transformers.unsupported import check_deepspeed, check_quantization

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from rlsparse_store.delta.open import DeltaCheckpoint, Verify

__all__ = ["enable_transformers"]

_FIND: Final = "_get_resolved_checkpoint_files"
_LOAD: Final = "_load_pretrained_model"
_MARK: Final = "_rlsparse_store"

_PARAMETERS: Final = {
    _FIND: {"pretrained_model_name_or_path", "download_kwargs"},
    _LOAD: {"model", "state_dict", "checkpoint_files", "load_config"},
}
"""Required parameters. The functions are private, so their signatures are checked first."""


def enable_transformers() -> None:
    """Let ``from_pretrained`` of transformers load deltas by name.

    Afterwards ``AutoModelForCausalLM.from_pretrained("me/delta")``, ``pipeline`` and other loaders
    accept a delta in place of a checkpoint. If they find no weights, they look for a delta, and for
    its base as ``from_delta(None, …)`` does. The change lasts until the process ends. A second call
    has no effect.

    Raises:
        RlsparseError: This version of transformers is not supported.

    Example:
        >>> enable_transformers()  # doctest: +SKIP
        >>> AutoModelForCausalLM.from_pretrained("me/qwen2.5-7b-grpo")  # doctest: +SKIP
    """
    find = getattr(modeling_utils, _FIND, None)
    load = getattr(modeling_utils.PreTrainedModel, _LOAD, None)
    if hasattr(find, _MARK):
        return
    for name, function in ((_FIND, find), (_LOAD, load)):
        if function is None or not _PARAMETERS[name] <= set(inspect.signature(function).parameters):
            msg = (
                f"enable_transformers does not support transformers {transformers.__version__}; "
                "use from_delta, which relies only on its public functions"
            )
            raise RlsparseError(msg)
    assert find is not None  # noqa: S101 - checked above
    assert load is not None  # noqa: S101 - as above
    setattr(modeling_utils, _FIND, _wrap_find(find))
    setattr(modeling_utils.PreTrainedModel, _LOAD, staticmethod(_wrap_load(load)))


def _wrap_find(find: Callable[..., Any]) -> Callable[..., Any]:
    """Return no files where there is a delta instead of weights; :func:`_wrap_load` handles it."""

    @functools.wraps(find)
    def find_or_delta(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        try:
            return find(*args, **kwargs)
        except OSError:
            call = inspect.signature(find).bind(*args, **kwargs).arguments
            name = call["pretrained_model_name_or_path"]
            tuned = None
            is_other = call.get("variant") is not None or call.get("gguf_file") is not None
            if name is not None and not is_other:
                # Without checks: only names and dtypes are read here.
                tuned = _open(name, call.get("download_kwargs"), "none")
            if tuned is None:
                raise
            with tuned:
                # transformers takes the dtype from the weights if the configuration has none.
                get_state_dict_dtype: Any = modeling_utils.get_state_dict_dtype
                return None, {"dtype": get_state_dict_dtype(tuned.slices())}

    setattr(find_or_delta, _MARK, True)
    return find_or_delta


def _wrap_load(load: Callable[..., Any]) -> Callable[..., Any]:
    """Load the delta if there are neither files nor a state dict."""

    @functools.wraps(load)
    def load_or_delta(
        model: Any,  # noqa: ANN401 - passed on
        state_dict: Any,  # noqa: ANN401 - passed on
        checkpoint_files: Any,  # noqa: ANN401 - passed on
        load_config: Any,  # noqa: ANN401 - passed on
        *args: Any,  # noqa: ANN401 - passed on
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> Any:  # noqa: ANN401 - passed on
        name = load_config.pretrained_model_name_or_path
        if state_dict is not None or checkpoint_files is not None or name is None:
            return load(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        device = single_device(load_config.device_map)
        tuned = _open(name, load_config.download_kwargs, "touched", device)
        if tuned is None:
            msg = "the delta was deleted during loading; load it again"
            raise NotFoundError(msg, file=name)
        with tuned:
            check_deepspeed()
            check_quantization(model.config, tuned.path)
            loaded = load(model, tuned.slices(), None, load_config, *args, **kwargs)
            tuned.check_unchanged()
            return loaded

    return load_or_delta


def _open(
    name: Any,  # noqa: ANN401 - transformers'
    download: Any,  # noqa: ANN401 - transformers'
    verify: Verify,
    device: torch.device | None = None,
) -> DeltaCheckpoint | None:
    """Open a delta by name; return ``None`` if there is none."""
    download = download or {}
    access = HubAccess(
        token=download.get("token"),
        cache_dir=download.get("cache_dir"),
        local_files_only=bool(download.get("local_files_only")),
    )
    revision = None if Path(name).exists() else download.get("revision")
    try:
        folder = find_delta(name, revision, download.get("subfolder") or "", access)
    except NotFoundError:
        return None
    if not (folder / DELTA_FOLDER).is_dir():
        return None
    return open_for_model(folder, None, None, access, verify, device)
