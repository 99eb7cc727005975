"""Which bytes of a tensor a rank holds: runs of rows, to which columns are redistributed first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.torch.dtensor import is_dtensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.tensor import DTensor

__all__ = ["by_rows", "first_of_run"]

_TRANSPORT_DTYPES: Final = {1: torch.uint8, 2: torch.bfloat16, 4: torch.int32, 8: torch.int64}
"""By bytes per element: dtypes that every communication backend supports."""


def first_of_run(offsets: Sequence[int], sizes: Sequence[int], shape: Sequence[int]) -> int | None:
    """Return the first element of a part of a tensor, or ``None`` if its elements are apart.

    Args:
        offsets: The part's first index in each dimension.
        sizes: The part's dimensions.
        shape: The tensor's dimensions.

    Example:
        >>> first_of_run((2, 0), (2, 8), (4, 8))
        16
        >>> first_of_run((0, 4), (4, 4), (4, 8)) is None
        True
    """
    split = [dim for dim, (part, size) in enumerate(zip(sizes, shape, strict=True)) if part != size]
    last = split[-1] if split else 0
    if any(size != 1 for size in sizes[:last]):
        return None
    return sum(offset * math.prod(shape[dim + 1 :]) for dim, offset in enumerate(offsets))


def by_rows(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Redistribute the DTensors of a state dict that are not split by rows. All ranks call it.

    A rank's part of a tensor that is split by columns is many short runs, which cannot be encoded
    one by one. The ranks exchange these parts (an all-to-all on CUDA), so that each holds rows.
    Tensors that are split by rows or replicated are returned as they are.

    Args:
        state_dict: The state dict, which may be nested. It is not changed.

    Returns:
        A state dict with rows, in new memory of the size of the redistributed parts.

    Example:
        >>> dcp.save(by_rows(state_dict), storage_writer=writer)  # doctest: +SKIP
    """
    return _by_rows(state_dict, {})


def _by_rows(state_dict: Mapping[str, Any], done: dict[object, DTensor]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in state_dict.items():
        rows[key] = value
        if isinstance(value, Mapping):
            rows[key] = _by_rows(value, done)
        elif is_dtensor(value) and not all(map(_is_by_rows, value.placements)):
            memory = _memory(value) or key
            if memory not in done:
                done[memory] = _redistributed(value)
            rows[key] = done[memory]
    return rows


def _memory(tensor: DTensor) -> object:
    """Return what tied tensors share, or ``None``: the same answer on every rank.

    Otherwise one rank would take part in an exchange that another one leaves out.
    """
    sizes = [{size} for size in tensor.shape]
    for count, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        if placement.is_partial():
            return None
        if not placement.is_replicate():
            dim = placement.dim  # type: ignore[attr-defined]
            sizes[dim] = {part for size in sizes[dim] for part in _chunks(size, count)}
    if any(0 in of_dim for of_dim in sizes):
        # The address of an empty part tells nothing.
        return None
    return tensor.to_local().data_ptr(), tensor.shape, tensor.dtype


def _chunks(size: int, count: int) -> set[int]:
    """Return the sizes of the parts of a dimension that is split over ``count`` ranks."""
    most = -(-size // count)
    return {max(0, min(most, size - start * most)) for start in range(count)}


def _is_by_rows(placement: Any) -> bool:  # noqa: ANN401 - a placement
    # Strided shards, which FSDP2 makes of tensor parallelism, are rows as well.
    return placement.is_replicate() or getattr(placement, "dim", None) == 0


def _redistributed(tensor: DTensor) -> DTensor:
    from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415 - see is_dtensor

    rows = [p if p.is_replicate() else Shard(0) for p in tensor.placements]
    # Parts in main memory move to the device of the mesh for communication.
    held: Any = tensor.detach().to(tensor.device_mesh.device_type)
    if any(placement.is_partial() for placement in tensor.placements):
        summed: DTensor = held.redistribute(placements=rows)
        return summed
    shape, stride = tensor.shape, torch.empty(tensor.shape, device="meta").stride()
    local = held.to_local().contiguous()
    # Some backends do not support 8-bit floats.
    bits = DTensor.from_local(
        local.view(_TRANSPORT_DTYPES[local.element_size()]),
        tensor.device_mesh,
        tensor.placements,
        shape=shape,
        stride=stride,
    )
    moved = bits.redistribute(placements=rows).to_local().contiguous()
    if moved.untyped_storage().nbytes() > moved.nbytes:
        # Without an all-to-all, torch gathers the whole tensor and returns a view of it.
        moved = moved.clone()
    return DTensor.from_local(
        moved.view(tensor.dtype), tensor.device_mesh, rows, shape=shape, stride=stride
    )
