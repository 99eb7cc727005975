"""``from_delta``: the tuned model, loaded by transformers from base and delta."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from rlsparse_store.delta.open import DeltaCheckpoint, open_local
from rlsparse_store.delta.resolve import find_delta
from rlsparse_store.errors import BaseMismatchError, NotFoundError
from rlsparse_store.frameworks.framework import get_framework
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.transformers.device_map import only_device
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

__all__ = ["from_delta", "open_for_model"]

# AutoConfig would take these for its own, as the automatic classes know too.
_NOT_OF_CONFIG = ("dtype", "torch_dtype", "quantization_config", "trust_remote_code")


def from_delta(  # noqa: PLR0913 - the arguments of from_pretrained, twice
    base_id: str | PathLike[str] | None,
    delta_id: str | PathLike[str],
    *,
    base_revision: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    auto_class: str | type | None = None,
    verify: str = "touched",
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    **from_pretrained_kwargs: Any,  # noqa: ANN401 - what from_pretrained takes
) -> Any:  # noqa: ANN401 - a model, or a model and what from_pretrained says of loading it
    """Load the tuned model from its base and a delta.

    Weights are made as transformers asks for them, tensor by tensor or slab by slab, so that it
    takes the memory of one model. Where all of it goes to one CUDA device, they are made there, as
    :func:`rlsparse_store.open_delta` makes them.

    The configuration, the generation configuration and the code of the model are those of the
    delta's folder, which are the tuned model's.

    Args:
        base_id: The base, a folder or ``org/name[@revision]``. ``None`` takes the commit that the
            delta names, else any snapshot in the cache with its content.
        delta_id: The delta, a folder or ``org/name[@revision]``.
        base_revision: The same of the base.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        subfolder: Folder of the delta within its repository or folder.
        auto_class: The class to load, or the name of one in transformers, such as
            ``"AutoModelForCausalLM"``; by default the one that the configuration names.
        verify: As :func:`rlsparse_store.open_delta`. ``"touched"`` compares all that is read with
            the delta's digests.
        token: Access token for the Hub.
        cache_dir: Cache for what is downloaded.
        local_files_only: Whether to use only what is in the cache.
        **from_pretrained_kwargs: What ``from_pretrained`` of the model takes: ``dtype``,
            ``device_map``, ``distributed_config``, ``attn_implementation``, …

    Returns:
        The model, as ``from_pretrained`` gives it; with ``output_loading_info=True`` the model and
        the information.

    Raises:
        TypeError: An argument has no meaning here, such as ``state_dict``.
        NotFoundError: The delta or the base is not there.
        BaseMismatchError: The base is not the right one.
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
    base = None if base_id is None else _place(base_id)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    folder = find_delta(_place(delta_id), revision, subfolder, access)
    device = only_device(from_pretrained_kwargs.get("device_map"))
    with open_for_model(folder, base, base_revision, access, verify, device) as tuned:
        folders = [f for f in (folder, tuned.base) if f.is_dir()]
        config, arguments = _configuration(folders, from_pretrained_kwargs)
        check_quantization(config, folder)
        trust = arguments.get("trust_remote_code")
        model_class = find_class(config, auto_class, folders, trust)
        if (folder / "generation_config.json").is_file():
            arguments.setdefault("generation_config", GenerationConfig.from_pretrained(folder))
        # There is no name to give: a name and a state dict exclude each other.
        loaded = model_class.cls.from_pretrained(
            None, config=model_class.config, state_dict=tuned.slices(), **arguments
        )
        tuned.check_unchanged()
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = str(delta_id)
    return loaded


def open_for_model(
    folder: Path,
    base: str | Path | None,
    base_revision: str | None,
    access: HubAccess,
    verify: str,
    device: torch.device | None = None,
) -> DeltaCheckpoint:
    """Open a delta all of whose tensors a model will read.

    Args:
        folder: Its folder.
        base: As for :func:`from_delta`.
        base_revision: As there.
        access: How to reach the Hub.
        verify: As there.
        device: Where all of the model goes, if it is one CUDA device.

    Raises:
        BaseMismatchError: The base is not the right one; says so if it is an adapter, or
            quantised in another way.
    """
    try:
        framework = get_framework("pt", device)
        return open_local(folder, base, base_revision, access, framework, verify, is_whole=True)
    except BaseMismatchError as error:
        place = error.file if isinstance(error.file, Path) else folder
        raise explain_mismatch(error, place, folder) from error


def _place(name: str | PathLike[str]) -> str | Path:
    return name if isinstance(name, str) else Path(name)


def _configuration(folders: list[Path], arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's configuration, and what is left of the arguments for the model.

    As with ``from_pretrained``, arguments that the configuration knows change it.
    """
    given = arguments.get("config")
    if isinstance(given, PreTrainedConfig):
        return given, {name: value for name, value in arguments.items() if name != "config"}
    place = given or next((f for f in folders if (f / "config.json").is_file()), None)
    if place is None:
        msg = "neither delta nor base has a config.json; give config"
        raise NotFoundError(msg, file=folders[0])
    kept = {name: arguments[name] for name in _NOT_OF_CONFIG if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in {*kept, "config"}}
    config, left = AutoConfig.from_pretrained(
        place,
        return_unused_kwargs=True,
        trust_remote_code=arguments.get("trust_remote_code"),
        **rest,
    )
    left.pop("trust_remote_code", None)
    return config, {**left, **kept}
