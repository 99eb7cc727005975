"""Plans of torch.distributed.checkpoint: which tensors they save, and on which ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.planner import WriteItemType

from rlsparse_store.delta.joined_delta import Described
from rlsparse_store.errors import CheckpointError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.row_slabs import first_of_run
from rlsparse_store.torch.state_dict import dtype_and_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.distributed.checkpoint.planner import SavePlan, WriteItem

    from rlsparse_store.torch.saved_parts import Part

    PartsOf = Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, list[Part]]]

__all__ = ["describe", "first_element", "put_together"]


def describe(
    plans: list[SavePlan], parts_of: PartsOf
) -> tuple[Mapping[str, list[Part]], dict[str, Described]]:
    """Return what each key is saved as, and the tensors by their names.

    Args:
        plans: The plans of all ranks.
        parts_of: Returns the tensors that keys are saved as, given their shapes.

    Raises:
        CheckpointError: A value is no tensor, or a tensor's parts are not runs of elements.
    """
    keys: dict[str, torch.Tensor] = {}
    for item in (item for plan in plans for item in plan.items):
        key, data = item.index.fqn, item.tensor_data
        if item.type is WriteItemType.BYTE_IO or data is None:
            msg = "is no tensor: a delta holds a model's weights; save the rest with another writer"
            raise CheckpointError(msg, tensor=printable(key))
        if data.chunk.sizes.numel() and first_element(item) is None:
            msg = (
                "is split by columns over the ranks: redistribute it to rows first "
                "(rlsparse_store.integrations.dcp.by_rows)"
            )
            raise CheckpointError(msg, tensor=printable(key))
        like = torch.empty(data.size, dtype=data.properties.dtype, device="meta")
        known = keys.setdefault(key, like)
        if (known.dtype, known.shape) != (like.dtype, like.shape):
            msg = "has another dtype or shape on another rank"
            raise CheckpointError(msg, tensor=printable(key))
    parts = parts_of({key: tuple(like.shape) for key, like in keys.items()})
    tensors: dict[str, Described] = {}
    for key, like in keys.items():
        _require_covered(key, like, parts[key])
        for part in parts[key]:
            if part.name in tensors:
                msg = f"is the name of two keys, one of them {printable(key)!r}"
                raise CheckpointError(msg, tensor=printable(part.name))
            shaped = torch.empty(part.shape, dtype=like.dtype, device="meta")
            tensors[part.name] = Described(part.name, *dtype_and_shape(part.name, shaped))
    return parts, tensors


def first_element(item: WriteItem) -> int | None:
    """Return the first element of an item's run in its tensor; ``None`` if it is no run."""
    data = item.tensor_data
    assert data is not None  # noqa: S101 - of a tensor
    return first_of_run(data.chunk.offsets, data.chunk.sizes, data.size)


def _require_covered(key: str, tensor: torch.Tensor, parts: list[Part]) -> None:
    """Require that nothing of a tensor is left out.

    Raises:
        CheckpointError: Something is.
    """
    if sum(math.prod(part.shape) for part in parts) != tensor.numel():
        msg = f"has another shape, {list(tensor.shape)}, than the model that tells its parts"
        raise CheckpointError(msg, tensor=printable(key))


def put_together(plans: list[SavePlan], strange: set[str]) -> list[SavePlan]:
    """Give tensors that may share their memory to one rank, which alone can tell.

    Torch gives replicas to any rank. Candidates are tensors that the base lacks, with those of
    their shape, and two tensors whose shape no other has, as embedding and head.

    Args:
        plans: The plans, with what each rank holds as their storage data.
        strange: Keys of the tensors that the base lacks.
    """
    owners: defaultdict[tuple[object, ...], list[tuple[str, int]]] = defaultdict(list)
    for rank, item in _items(plans):
        owners[_geometry(item)].append((item.index.fqn, rank))
    for candidates in owners.values():
        # As in HeldSlabs.sort_out, the first one is encoded.
        candidates.sort(key=lambda owner: (owner[0] in strange, owner))
    moved: dict[int, list[WriteItem]] = {rank: [] for rank in range(len(plans))}
    for rank, item in _items(plans):
        target = rank
        candidates = owners[_geometry(item)]
        if item.index.fqn in strange or len(candidates) == 2:
            holding = (r for _, r in candidates if item.index in plans[r].storage_data)
            target = next(holding, rank)
        moved[target].append(item)
    return [replace(plan, items=moved[rank]) for rank, plan in enumerate(plans)]


def _items(plans: list[SavePlan]) -> Iterator[tuple[int, WriteItem]]:
    return ((rank, item) for rank, plan in enumerate(plans) for item in plan.items)


def _geometry(item: WriteItem) -> tuple[object, ...]:
    data = item.tensor_data
    assert data is not None  # noqa: S101 - of a tensor
    return data.chunk.offsets, data.chunk.sizes, data.size, data.properties.dtype
