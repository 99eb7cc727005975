"""Proof that writing weights in place is what loading them does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from rlsparse_store.errors import RlsparseError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["check_in_place"]

KEEP_WEIGHTS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
"""vLLM's methods that compute with the weights as they were loaded, where nothing packs them."""


def check_in_place(
    model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]], *, uses_mla: bool
) -> None:
    """Prove that a model's memory holds its checkpoint's words, and nothing derived from them.

    The model loads the checkpoint that it already holds, while each write to its memory is replaced
    by a comparison. Nothing is written. Where every write finds its own result, loading another
    checkpoint writes that one's words.

    Args:
        model: A loaded model.
        weights: The tensors of the checkpoint that it holds.
        uses_mla: Whether its attention keeps products of weights (multi-head latent attention).

    Raises:
        UnsupportedModelError: It is not proven, and why.
    """
    reason = _derived(model, uses_mla=uses_mla)
    if reason is None:
        addresses = _addresses(model)
        writes = _ComparedWrites(model)
        try:
            with torch.no_grad(), writes:
                loads: Any = model  # nn.Module knows no load_weights
                loads.load_weights(weights)
        except _DifferenceError as error:
            reason = str(error)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, RlsparseError):
                raise
            reason = f"loading the checkpoint again is an error ({error})"
        if reason is None and _addresses(model) != addresses:
            reason = "loading replaces its memory"
        if reason is None and not writes.places:
            reason = "loading writes nothing"
    if reason is not None:
        msg = (
            f"weights cannot be written in place: {reason}; use the backend rlsparse, which loads "
            "layer by layer"
        )
        raise UnsupportedModelError(msg)


class _DifferenceError(Exception):
    """A write that would have changed the model."""


def _derived(model: nn.Module, *, uses_mla: bool) -> str | None:
    """What the model computes with besides its parameters, if anything."""
    if uses_mla:
        return "its attention keeps products of weights"
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, QuantizeMethodBase) and type(method) not in KEEP_WEIGHTS:
            return f"{name} has weights of its own kind ({type(method).__name__})"
        # On the CPU, a function that computes with a packed copy holds it in its closure.
        packed = getattr(getattr(module, "cpu_linear", None), "__closure__", None)
        if packed is not None and not isinstance(module, VocabParallelEmbedding):
            return f"{name} computes with a packed copy"
    return None


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _addresses(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in _tensors(model)]


class _ComparedWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, each write to a model's memory is done to a copy, which must not change.

    Attributes:
        places: Address, shape and strides of each tensor that was written.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors(model)} - {0}
        self.places: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's
        types: Any,  # noqa: ANN401 - as above
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as above
        """Run an operation of torch, on copies of what it would write."""
        given, named = list(args), dict(kwargs or {})
        written: list[tuple[torch.Tensor, torch.Tensor]] = []
        for position, argument in enumerate(func._schema.arguments):  # noqa: SLF001 - torch offers no other way to tell
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            holder: Any = given if position < len(given) else named
            key: Any = position if position < len(given) else argument.name
            value = holder[key] if holder is given else named.get(key)
            if isinstance(value, (list, tuple)) and any(map(self._is_model, value)):
                msg = f"loading writes several tensors at once ({func})"
                raise _DifferenceError(msg)
            if isinstance(value, torch.Tensor) and self._is_model(value):
                holder[key] = value.clone()
                written.append((value, holder[key]))
        result = func(*given, **named)
        if not written:
            return result
        for held, changed in written:
            self._compare(held, changed)
        return written[0][0]

    def _is_model(self, value: object) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and value.numel() > 0
            and value.untyped_storage().data_ptr() in self._memory
        )

    def _compare(self, held: torch.Tensor, changed: torch.Tensor) -> None:
        place = held.data_ptr(), tuple(held.shape), held.stride()
        if place in self.places:
            msg = "several tensors of the checkpoint are loaded into the same memory"
            raise _DifferenceError(msg)
        self.places.add(place)
        if not torch.equal(_bits(held), _bits(changed)):
            msg = (
                f"a tensor of {list(held.shape)} does not hold the checkpoint's words, but what "
                "vLLM made of them"
            )
            raise _DifferenceError(msg)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
