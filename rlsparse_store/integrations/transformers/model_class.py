"""Which class a model is loaded as.

The automatic classes of transformers look for their class while they load from a folder or a
repository, and a delta is neither: so the same choice is made here, by the same rules.
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
    """What to load.

    Attributes:
        cls: The class.
        config: The configuration to give it: that of the model within a composite one, where the
            class is that of the model within.
    """

    cls: Any
    config: Any


def find_class(
    config: Any,  # noqa: ANN401 - transformers' configurations
    wanted: str | type | None,
    folders: list[Path],
    trust: bool | None,  # noqa: FBT001 - as transformers names it
) -> ModelClass:
    """Find the class of a model.

    Args:
        config: Its configuration.
        wanted: A class, automatic or not, or the name of one in transformers; by default the class
            that the configuration names.
        folders: Where the code of a model may lie that is not part of transformers.
        trust: Whether such code may be run; asked for by transformers if it is needed.

    Raises:
        RlsparseError: The configuration names no class that is known here.
        ValueError: Code would have to be run and is not trusted.
    """
    chosen = _named(wanted) if wanted is not None else _by_architecture(config)
    if not hasattr(chosen, "_model_mapping"):
        return ModelClass(chosen, config)
    reference = (getattr(config, "auto_map", None) or {}).get(chosen.__name__)
    mapping = chosen._model_mapping  # noqa: SLF001 - there is no public way to ask it
    is_local = type(config) in mapping
    repo = reference.partition("--")[0] if reference and "--" in reference else None
    trusted = resolve_trust_remote_code(  # type: ignore[no-untyped-call]
        trust, str(folders[0]), is_local, reference is not None, upstream_repo=repo
    )
    if reference and trusted:
        return ModelClass(_from_code(chosen, reference, folders), config)
    if not is_local:
        msg = f"{chosen.__name__} knows no {type(config).__name__}; give another auto_class"
        raise RlsparseError(msg, file=folders[0])
    cls = auto_factory._get_model_class(config, mapping)  # type: ignore[no-untyped-call] # noqa: SLF001 - as above
    inner = config.sub_configs.get("text_config")
    if inner is not None and getattr(cls, "config_class", None) is inner:
        quantization = getattr(config, "quantization_config", None)
        config = config.get_text_config()
        if quantization is not None:
            config.quantization_config = quantization
    return ModelClass(cls, config)


def _named(wanted: str | type) -> Any:  # noqa: ANN401 - any class of transformers
    if not isinstance(wanted, str):
        return wanted
    found = getattr(transformers, wanted, None)
    if found is None:
        msg = (
            f"transformers has no class {printable(wanted)}; give auto_class another name, or a "
            "class"
        )
        raise RlsparseError(msg)
    return found


def _by_architecture(config: Any) -> Any:  # noqa: ANN401 - any class of transformers
    """The class that the configuration names, or the automatic class that its code goes with."""
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
            f"the configuration names no class that transformers has (it names {named}): give "
            'auto_class, for example "AutoModelForCausalLM"'
        )
        raise RlsparseError(msg)
    return found[0]


def _from_code(auto: Any, reference: str, folders: list[Path]) -> Any:  # noqa: ANN401 - as above
    """A class whose code lies beside the weights, or in a repository of its own."""
    module = reference.rpartition("--")[2].partition(".")[0] + ".py"
    folder = next((f for f in folders if (f / module).is_file()), folders[0])
    cls: Any = get_class_from_dynamic_module(reference, str(folder))
    cls.register_for_auto_class(auto_class=auto)
    return auto_factory.add_generation_mixin_to_remote_model(cls)  # type: ignore[no-untyped-call]
