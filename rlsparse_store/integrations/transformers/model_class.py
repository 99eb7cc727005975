"""Choosing the class of a model.

The auto classes of transformers choose the class while they load a folder or a repository. A delta
is neither, so this module applies the same rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import transformers
from transformers.dynamic_module_utils import (
    get_class_from_dynamic_module,
    resolve_trust_remote_code,
)
from transformers.models.auto import auto_factory

from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ModelClass", "find_class"]


class ModelClass(NamedTuple):
    """A class and its configuration.

    Attributes:
        cls: The class to load.
        config: The configuration to pass. For the text model of a composite model, this is the text
            configuration.
    """

    cls: Any
    config: Any


def find_class(
    config: Any,  # noqa: ANN401 - transformers' configurations
    wanted: str | type | None,
    folders: list[Path],
    trust_remote_code: bool | None,  # noqa: FBT001 - positional in transformers, too
) -> ModelClass:
    """Find the class of a model.

    Args:
        config: Configuration of the model.
        wanted: A class, auto or not, or its name in transformers; ``None`` for the class that the
            configuration names.
        folders: Folders that may hold the model's own code.
        trust_remote_code: Whether the model's own code may run; ``None`` lets transformers ask.

    Raises:
        RlsparseError: transformers has no such class.
        ValueError: The model needs its own code, which is not trusted.
    """
    chosen = _by_name(wanted) if wanted is not None else _by_architecture(config)
    if not hasattr(chosen, "_model_mapping"):
        return ModelClass(chosen, config)
    reference = (getattr(config, "auto_map", None) or {}).get(chosen.__name__)
    mapping = chosen._model_mapping  # noqa: SLF001 - there is no public accessor
    is_local = type(config) in mapping
    repo = reference.partition("--")[0] if reference and "--" in reference else None
    trusted = resolve_trust_remote_code(  # type: ignore[no-untyped-call]
        trust_remote_code, str(folders[0]), is_local, reference is not None, upstream_repo=repo
    )
    if reference and trusted:
        return ModelClass(_from_code(chosen, reference, folders), config)
    if not is_local:
        msg = f"{chosen.__name__} does not support {type(config).__name__}; pass another auto_class"
        raise RlsparseError(msg, file=folders[0])
    cls = auto_factory._get_model_class(config, mapping)  # type: ignore[no-untyped-call] # noqa: SLF001 - as above
    inner = config.sub_configs.get("text_config")
    if inner is not None and getattr(cls, "config_class", None) is inner:
        quantization = getattr(config, "quantization_config", None)
        config = config.get_text_config()
        if quantization is not None:
            config.quantization_config = quantization
    return ModelClass(cls, config)


def _by_name(wanted: str | type) -> Any:  # noqa: ANN401 - any class of transformers
    if not isinstance(wanted, str):
        return wanted
    found = getattr(transformers, wanted, None)
    if found is None:
        msg = f"transformers has no class {printable(wanted)}; pass another auto_class"
        raise RlsparseError(msg)
    return found


def _by_architecture(config: Any) -> Any:  # noqa: ANN401 - any class of transformers
    """Return the class that the configuration names, or the auto class of the model's own code."""
    names = getattr(config, "architectures", None) or []
    auto_map = getattr(config, "auto_map", None) or {}
    for auto, reference in auto_map.items():
        is_model = hasattr(getattr(transformers, auto, None), "_model_mapping")
        if is_model and (not names or reference.rpartition(".")[2] in names):
            return getattr(transformers, auto)
    found = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not found:
        named = ", ".join(map(printable, names)) or "none"
        msg = (
            f"transformers has none of the configuration's architectures ({named}): pass "
            'auto_class, for example "AutoModelForCausalLM"'
        )
        raise RlsparseError(msg)
    return found[0]


def _from_code(auto: Any, reference: str, folders: list[Path]) -> Any:  # noqa: ANN401 - as above
    """Load a class from the model's own code, next to the weights or in another repository."""
    module = reference.rpartition("--")[2].partition(".")[0] + ".py"
    folder = next((f for f in folders if (f / module).is_file()), folders[0])
    cls: Any = get_class_from_dynamic_module(reference, str(folder))
    cls.register_for_auto_class(auto_class=auto)
    return auto_factory.add_generation_mixin_to_remote_model(cls)  # type: ignore[no-untyped-call]
