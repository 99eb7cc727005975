"""What a rank writes of a delta: the slabs of the tensors that it holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rlsparse_store.delta.joined_delta import Tie
from rlsparse_store.torch.slab_plans import first_element
from rlsparse_store.torch.state_dict import live_tensor

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.planner import WriteItem

    from rlsparse_store.delta.slab_encoder import TensorOrder
    from rlsparse_store.frameworks.torch import LiveTensor
    from rlsparse_store.torch.saved_parts import Part

__all__ = ["HeldSlabs", "RankTask"]


class RankTask(NamedTuple):
    """What the coordinator tells a rank.

    Attributes:
        place: Where shards are written: the ``rlsparse`` folder in the temporary folder of the
            delta, or the delta's URL.
        number: Number of the rank's shard, from 1.
        shards: Number of shards with the last one.
        parts: The tensors that each key of the state dict is saved as.
        orders: How to store each tensor, by its name.
        known_sources: Names of base tensors whose digest the coordinator knows.
        base: Identity of the coordinator's base.
    """

    place: str
    number: int
    shards: int
    parts: dict[str, list[Part]]
    orders: dict[str, TensorOrder]
    known_sources: frozenset[str]
    base: int


class _Slab(NamedTuple):
    """A slab of a tensor, in memory: its tensor, its first element in it, and its elements."""

    name: str
    first: int
    shape: tuple[int, ...]
    data: torch.Tensor


class HeldSlabs:
    """The slabs that a rank writes, and those that are in the memory of others.

    Args:
        task: What the rank writes.

    Attributes:
        live: The slabs by a key of their own.
        places: The name of each one's tensor, and its first byte in it.
        ties: Slabs that are not encoded.
    """

    def __init__(self, task: RankTask) -> None:
        self.live: dict[str, LiveTensor] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self.ties: list[Tie] = []
        self._task = task
        self._slabs: list[_Slab] = []

    def add(self, item: WriteItem, data: torch.Tensor) -> None:
        """Add the data of an item."""
        start = first_element(item)
        assert start is not None  # noqa: S101 - the coordinator refuses others
        flat = data.detach().reshape(-1)
        for part in self._task.parts[item.index.fqn]:
            first, stop = max(start, part.first), min(start + flat.numel(), part.stop)
            if first >= stop:
                continue
            row = math.prod(part.shape[1:])
            are_rows = (first - part.first) % row == 0 and (stop - first) % row == 0
            shape = ((stop - first) // row, *part.shape[1:]) if are_rows else (stop - first,)
            found = flat[first - start : stop - start].view(shape)
            self._slabs.append(_Slab(part.name, first - part.first, part.shape, found))

    def sort_out(self) -> None:
        """Tell the slabs to encode from those that are in the memory of others."""
        owners: dict[tuple[object, ...], str] = {}

        def place(slab: _Slab) -> tuple[bool, bytes, int]:
            # One that has a source is encoded rather than one that would be stored whole.
            return not self._task.orders[slab.name].source, slab.name.encode(), slab.first

        for slab in sorted(self._slabs, key=place):
            data = slab.data
            memory = (data.device, data.data_ptr(), data.dtype, data.shape, slab.first, slab.shape)
            target = owners.setdefault(memory, slab.name)
            if target != slab.name:
                self.ties.append(Tie(slab.name, data.numel() * data.element_size(), target))
                continue
            key = slab.name
            if key in self.live:
                key = f"{slab.name} (from element {slab.first})"
            self.live[key] = live_tensor(key, data)
            self.places[key] = slab.name, slab.first * data.element_size()
