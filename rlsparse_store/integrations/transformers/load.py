"""``from_delta``: loads a transformers model from a base and a delta."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from rlsparse_store.delta.open import DeltaCheckpoint, open_local
from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import BaseMismatchError, NotFoundError
from rlsparse_store.frameworks.framework import get_framework
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.transformers.device_map import single_device
from rlsparse_store.integrations.transformers.model_class import find_class
from rlsparse_store.integrations.transformers.unsupported import (
    check_arguments,
    check_deepspeed,
    check_quantization,
    explain_mismatch,
)

if TYPE_CHECKING:
    from os import PathLike

    import torch

    from rlsparse_store.delta.open import Verify

__all__ = ["from_delta", "open_for_model"]

_MODEL_ARGUMENTS: Final = ("dtype", "torch_dtype", "quantization_config", "trust_remote_code")
"""Arguments of the model that AutoConfig would consume. transformers withholds them likewise."""


def from_delta(  # noqa: PLR0913 - the arguments of from_pretrained, twice
    base_id: str | PathLike[str] | None,
    delta_id: str | PathLike[str],
    *,
    base_revision: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    auto_class: str | type | None = None,
    verify: Verify = "touched",
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    **from_pretrained_kwargs: Any,  # noqa: ANN401 - arguments of from_pretrained
) -> Any:  # noqa: ANN401 - a model, or a model and its loading information
    """Load the tuned model from its base and a delta.

    Tensors are decoded when transformers reads them, so that loading takes the memory of one model.
    With ``RLSPARSE_GPU=1`` in the environment, a model that goes to one CUDA device as a whole is
    decoded there (see :func:`rlsparse_store.open_delta`). Experimental: never run on a GPU.

    The configuration, the generation configuration and the model's code come from the delta's
    folder: they belong to the tuned model.

    Args:
        base_id: The base: a folder, a URL in object storage or ``org/name[@revision]``. ``None``
            uses the commit that the delta names, else any snapshot in the cache with the same
            content.
        delta_id: The delta: a folder, a URL or ``org/name[@revision]``.
        base_revision: Branch, tag or commit of the base on the Hub, if the id does not name one.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        subfolder: Folder of the delta in its repository or folder.
        auto_class: The class to load or its name in transformers, such as
            ``"AutoModelForCausalLM"``; defaults to the class that the configuration names.
        verify: As for :func:`rlsparse_store.open_delta`. ``"touched"`` compares all tensors that
            are read with the delta's digests.
        token: Access token for the Hub.
        cache_dir: Cache folder of the Hub.
        local_files_only: Use only the cache and make no requests.
        **from_pretrained_kwargs: Arguments of the model's ``from_pretrained``: ``dtype``,
            ``device_map``, ``distributed_config``, ``attn_implementation``, …

    Returns:
        The model, as ``from_pretrained`` returns it; with ``output_loading_info=True`` the model
        and the loading information.

    Raises:
        TypeError: An argument does not apply to deltas, such as ``state_dict``.
        NotFoundError: The delta or the base does not exist.
        BaseMismatchError: The base is not the delta's base.
        FormatError: The delta is damaged.
        RlsparseError: The model cannot be loaded from a delta.

    Example:
        >>> from_delta("Qwen/Qwen2.5-7B", "me/qwen2.5-7b-grpo")  # doctest: +SKIP
    """
    if "delta_revision" in from_pretrained_kwargs:
        msg = "delta_revision is deprecated: use revision"
        warnings.warn(msg, DeprecationWarning, stacklevel=2)
        revision = from_pretrained_kwargs.pop("delta_revision")
    check_arguments(from_pretrained_kwargs)
    check_deepspeed()
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    folder = find_delta(delta_id, revision, subfolder, access)
    device = single_device(from_pretrained_kwargs.get("device_map"))
    with open_for_model(folder, base_id, base_revision, access, verify, device) as tuned:
        folders = [f for f in (folder, tuned.base) if f.is_dir()]
        config, arguments = _configuration(folders, from_pretrained_kwargs)
        check_quantization(config, folder)
        trust_remote_code = arguments.get("trust_remote_code")
        model_class = find_class(config, auto_class, folders, trust_remote_code)
        if (folder / "generation_config.json").is_file():
            arguments.setdefault("generation_config", GenerationConfig.from_pretrained(folder))
        # from_pretrained accepts either a name or a state dict.
        loaded = model_class.cls.from_pretrained(
            None, config=model_class.config, state_dict=tuned.slices(), **arguments
        )
        tuned.check_unchanged()
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = str(delta_id)
    return loaded


def open_for_model(
    folder: Path,
    base: str | PathLike[str] | None,
    base_revision: str | None,
    access: HubAccess,
    verify: Verify,
    device: torch.device | None = None,
) -> DeltaCheckpoint:
    """Open a delta from which a model reads all tensors.

    Args:
        folder: Folder of the delta.
        base: As for :func:`from_delta`.
        base_revision: As for :func:`from_delta`.
        access: How to reach the Hub.
        verify: As for :func:`from_delta`.
        device: The CUDA device of the whole model, if there is only one.

    Raises:
        BaseMismatchError: The base is not the delta's base. The message says if it is an adapter
            or has another quantisation.
    """
    try:
        framework = get_framework("pt", device)
        return open_local(folder, base, base_revision, access, framework, verify, is_whole=True)
    except BaseMismatchError as error:
        base_folder = error.file if isinstance(error.file, Path) else folder
        raise explain_mismatch(error, base_folder, folder) from error


def _configuration(folders: list[Path], arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the model's configuration, and the arguments that it does not use.

    As in ``from_pretrained``, arguments that are names of configuration fields override them.
    """
    config = arguments.get("config")
    if isinstance(config, PreTrainedConfig):
        return config, {name: value for name, value in arguments.items() if name != "config"}
    source = config or next((f for f in folders if (f / "config.json").is_file()), None)
    if source is None:
        msg = "neither the delta nor the base has a config.json; pass config="
        raise NotFoundError(msg, file=folders[0])
    for_model = {name: arguments[name] for name in _MODEL_ARGUMENTS if name in arguments}
    others = {
        name: value for name, value in arguments.items() if name not in {*for_model, "config"}
    }
    config, unused = AutoConfig.from_pretrained(
        source,
        return_unused_kwargs=True,
        trust_remote_code=arguments.get("trust_remote_code"),
        **others,
    )
    unused.pop("trust_remote_code", None)
    return config, {**unused, **for_model}
