"""What cannot be loaded from a delta, each said by its name."""

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
    "state_dict": "the weights are those of base and delta",
    "gguf_file": "a delta is applied to safetensors weights; convert the result instead",
    "variant": "a delta holds one checkpoint; give the variant of the base as a folder",
    "adapter_kwargs": "load the model first, then the adapter with load_adapter",
    "adapter_name": "load the model first, then the adapter with load_adapter",
    "from_tf": "a delta is applied to safetensors weights",
    "from_flax": "a delta is applied to safetensors weights",
}

_APPLY: Final = "rebuild the checkpoint with rlsparse apply and load that"


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments that have no meaning for a delta.

    Raises:
        TypeError: There is one.
    """
    for name, reason in _REFUSED.items():
        if arguments.get(name) is not None:
            msg = f"from_delta() takes no {name}: {reason}"
            raise TypeError(msg)


def check_deepspeed() -> None:
    """Refuse to load while DeepSpeed takes models apart.

    Raises:
        RlsparseError: It does.
    """
    if is_deepspeed_zero3_enabled():  # type: ignore[no-untyped-call]
        msg = f"DeepSpeed ZeRO-3 needs all weights before it loads them: {_APPLY}"
        raise RlsparseError(msg)


def check_quantization(config: Any, folder: Path) -> None:  # noqa: ANN401 - any configuration
    """Refuse tuned models whose weights are no plain tensors.

    Raises:
        RlsparseError: They are serialised by torchao or in GGUF.
    """
    method = _method(getattr(config, "quantization_config", None))
    if method in {"torchao", "gguf"}:
        msg = (
            f"the tuned checkpoint is quantised by {method}, whose tensors mean nothing without "
            f"the rest of its file: {_APPLY}"
        )
        raise RlsparseError(msg, file=folder)


def explain_mismatch(error: BaseMismatchError, base: Path, tuned: Path) -> BaseMismatchError:
    """A better error for a base that does not match, if its folder says why.

    Args:
        error: The error.
        base: The base's folder.
        tuned: The folder with the tuned model's configuration.
    """
    if (base / "adapter_config.json").is_file():
        why = "the base is an adapter; give the model that the adapter belongs to"
        return BaseMismatchError(why, file=base)
    have, want = _method(_quantization(base)), _method(_quantization(tuned))
    if have != want:
        why = (
            f"the base is {_quantised(have)}, the tuned model {_quantised(want)}: give the base "
            "that it was tuned from"
        )
        return BaseMismatchError(f"{why} ({error.message})", file=base, tensor=error.tensor)
    return error


def _quantised(method: str | None) -> str:
    return "not quantised" if method is None else f"quantised by {printable(method)}"


def _quantization(folder: Path) -> Any:  # noqa: ANN401 - JSON has no one type
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("quantization_config") if isinstance(config, dict) else None


def _method(quantization: Any) -> str | None:  # noqa: ANN401 - a mapping or an object of theirs
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
    else:
        method = getattr(quantization, "quant_method", None)
    return str(getattr(method, "value", method))
