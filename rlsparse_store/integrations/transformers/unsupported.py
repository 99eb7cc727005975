"""Arguments and models that cannot be loaded from a delta."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from rlsparse_store.errors import BaseMismatchError, RlsparseError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_arguments", "check_deepspeed", "check_quantization", "explain_mismatch"]

_REFUSED: Final = {
    "state_dict": "the weights come from the base and the delta",
    "gguf_file": "a delta applies to safetensors weights; convert the result instead",
    "variant": "a delta holds one checkpoint; pass the folder of the base's variant",
    "adapter_kwargs": "load the model first, then the adapter with load_adapter",
    "adapter_name": "load the model first, then the adapter with load_adapter",
    "from_tf": "a delta applies to safetensors weights",
    "from_flax": "a delta applies to safetensors weights",
}

_APPLY: Final = "rebuild the checkpoint with `rlsparse apply` and load the result"


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments that do not apply to deltas.

    Raises:
        TypeError: An argument does not apply.
    """
    for name, reason in _REFUSED.items():
        if arguments.get(name) is not None:
            msg = f"from_delta() does not accept {name}: {reason}"
            raise TypeError(msg)


def check_deepspeed() -> None:
    """Refuse to load under DeepSpeed ZeRO-3, which partitions models.

    Raises:
        RlsparseError: ZeRO-3 is enabled.
    """
    if is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
        msg = f"DeepSpeed ZeRO-3 cannot load tensors one at a time: {_APPLY}"
        raise RlsparseError(msg)


def check_quantization(config: Any, folder: Path) -> None:  # noqa: ANN401 - any configuration
    """Refuse tuned models whose weights are not plain tensors.

    Raises:
        RlsparseError: The weights are serialised by torchao or in GGUF.
    """
    method = _method(getattr(config, "quantization_config", None))
    if method in {"torchao", "gguf"}:
        msg = (
            f"the tuned checkpoint is quantised by {method}, whose tensors depend on other data in "
            f"the file: {_APPLY}"
        )
        raise RlsparseError(msg, file=folder)


def explain_mismatch(error: BaseMismatchError, base: Path, tuned: Path) -> BaseMismatchError:
    """Return a more specific error if the base's folder explains the mismatch.

    Args:
        error: The error.
        base: Folder of the base.
        tuned: Folder with the tuned model's configuration.
    """
    if (base / "adapter_config.json").is_file():
        msg = "the base is an adapter; pass the model that the adapter belongs to"
        return BaseMismatchError(msg, file=base)
    actual, expected = _method(_quantization(base)), _method(_quantization(tuned))
    if actual != expected:
        msg = (
            f"the base is {_quantised(actual)}, the tuned model {_quantised(expected)}: pass the "
            f"base that it was tuned from ({error.message})"
        )
        return BaseMismatchError(msg, file=base, tensor=error.tensor)
    return error


def _quantised(method: str | None) -> str:
    return "not quantised" if method is None else f"quantised by {printable(method)}"


def _quantization(folder: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("quantization_config") if isinstance(config, dict) else None


def _method(quantization: Any) -> str | None:  # noqa: ANN401 - a mapping or an object of transformers
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
    else:
        method = getattr(quantization, "quant_method", None)
    return str(getattr(method, "value", method))
