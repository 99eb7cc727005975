"""The names of weights in memory, without what wrappers put into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from rlsparse_store.delta.plausibility import is_adapter_name
from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.pipeline.tensor_matching import plain_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rlsparse_store.files.checkpoint import TensorRef

__all__ = ["plain_names", "require_unfused"]

Value = TypeVar("Value")

_WRAPPERS: Final = {
    "_orig_mod.": "the model that torch.compile was given (model._orig_mod)",
    "module.": "the model inside the wrapper (model.module)",
}
"""By the prefix that a wrapper adds to all weight names: the model to pass instead."""


def plain_names(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Tensors, or what stands for them, under their plain names.

    Raises:
        RlsparseError: The model is wrapped, or holds an adapter; the message has the call that
            unwraps it.
    """
    _require_unwrapped(tensors)
    return {plain_name(name): tensor for name, tensor in tensors.items()}


def _require_unwrapped(names: Collection[str]) -> None:
    for prefix, inner in _WRAPPERS.items():
        if names and all(name.startswith(prefix) for name in names):
            msg = f"all weight names begin with {prefix!r}: pass {inner}"
            raise RlsparseError(msg)
    adapted = next(filter(is_adapter_name, names), None)
    if adapted is not None:
        msg = (
            "belongs to an adapter (PEFT), and its changes are not in the model's weights: pass "
            "copy.deepcopy(model).merge_and_unload()"
        )
        raise RlsparseError(msg, tensor=printable(adapted))


def require_unfused(tensors: Collection[str], base: Mapping[str, TensorRef]) -> None:
    """Require that experts are not fused into one tensor where the base has them one by one.

    transformers fuses them in memory. Its models know the way back, and their state dicts do not.

    Args:
        tensors: Names of the tensors to encode.
        base: The tensors of the base.

    Raises:
        RlsparseError: Some are.
    """
    single = {name.partition(".experts.")[0] for name in base if ".experts.0." in name}
    for name in tensors:
        stem, found, rest = name.partition(".experts.")
        if found and name not in base and stem in single and not rest[:1].isdigit():
            msg = (
                "holds all experts of a layer, which the base holds one by one: pass the model "
                "itself, not its state dict (to DeltaStorageWriter: model=model)"
            )
            raise RlsparseError(msg, tensor=printable(name))
