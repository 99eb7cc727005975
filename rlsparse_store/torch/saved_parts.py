"""The tensors that a key of a state dict is saved as: one, or the experts that a model fuses.

Transformers fuses the experts of a layer into one tensor when it loads them, and takes them apart
when it saves them. Here only the positions are taken apart, so it works for a model that is split
over ranks, and for tensors that no process holds.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.live_names import plain_names

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Part", "saved_parts", "shapes_of", "state_dict_of", "whole_parts"]


class Part(NamedTuple):
    """A tensor of a checkpoint within a tensor of a state dict: consecutive elements of it.

    Attributes:
        name: Its name in the checkpoint.
        first: Its first element.
        shape: Its dimensions.
    """

    name: str
    first: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The element after its last one."""
        return self.first + math.prod(self.shape)


def saved_parts(model: Any) -> dict[str, list[Part]]:  # noqa: ANN401 - any module
    """Return the tensors that a model is saved as, by the keys of its state dict.

    Args:
        model: The model. Only names and shapes are read.

    Raises:
        RlsparseError: The model is wrapped, holds an adapter, or saves a weight as something else
            than parts of consecutive elements.
    """
    shapes = shapes_of(model)
    keys = plain_names({key: key for key in shapes})
    transformers = sys.modules.get("transformers")
    converts = transformers is not None and isinstance(model, transformers.PreTrainedModel)
    return {
        key: _parts(model, name, shapes[key]) if converts else [Part(name, 0, shapes[key])]
        for name, key in keys.items()
    }


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the dimensions of a model's tensors, by the keys of its state dict."""
    return {key: tuple(tensor.shape) for key, tensor in state_dict_of(model).items()}


def state_dict_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's state dict."""
    return {key: w for key, w in model.state_dict().items() if isinstance(w, torch.Tensor)}


def _parts(model: Any, name: str, shape: tuple[int, ...]) -> list[Part]:  # noqa: ANN401 - a model
    probe = torch.empty(shape, device="meta")
    try:
        saved = _revert(model, name, probe)
        # Renaming alone returns the same object.
        if len(saved) == 1 and next(iter(saved.values())) is probe:
            return [Part(next(iter(saved)), 0, shape)]
        if len(shape) < 3:
            # Not experts: what two of its rows show says nothing of the others.
            raise _refusal(name)
        # Two experts show how each one is stored: the positions of all would fill the memory.
        few = (min(2, shape[0]), *shape[1:])
        positions = torch.arange(math.prod(few), dtype=torch.int32).view(few)
        shown = _revert(model, name, positions)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refusal(name) from error
    first_expert = [
        Part(part, int(found.flatten()[0]), tuple(found.shape))
        for part, found in shown.items()
        if _is_run(found) and found.flatten()[0] < math.prod(shape[1:])
    ]
    parts = [
        Part(_of_expert(part.name, number), part.first + number * math.prod(shape[1:]), part.shape)
        for number in range(shape[0])
        for part in first_expert
    ]
    is_shown = all(
        Part(part, int(found.flatten()[0]), tuple(found.shape)) in parts and _is_run(found)
        for part, found in shown.items()
    )
    if not is_shown or {p.name: p.shape for p in parts} != {
        part: tuple(found.shape) for part, found in saved.items()
    }:
        raise _refusal(name)
    return parts


def _revert(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401 - a model
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415 - loaded

    parts: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: weight})
    return parts


def _is_run(positions: torch.Tensor) -> bool:
    flat = positions.flatten()
    return torch.equal(flat, torch.arange(int(flat[0]), int(flat[0]) + len(flat)).to(flat.dtype))


def _of_expert(name: str, number: int) -> str:
    """Return the name of the same part of another expert."""
    before, found, after = name.partition(".experts.0.")
    return f"{before}.experts.{number}.{after}" if found else name


def _refusal(name: str) -> RlsparseError:
    msg = (
        "is saved as something else than parts of consecutive elements: gather the model first "
        "(FULL_STATE_DICT)"
    )
    return RlsparseError(msg, tensor=printable(name))


def whole_parts(
    names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, list[Part]]:
    """Return the parts of keys that are one tensor each, by key.

    Args:
        names: Their names in the checkpoint, by key.
        shapes: Their dimensions, by key.
    """
    return {key: [Part(name, 0, shapes[key])] for key, name in names.items()}
