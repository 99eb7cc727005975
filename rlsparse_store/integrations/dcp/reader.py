"""``DeltaStorageReader``: loads a delta into a state dict, each rank its own slices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from rlsparse_store.delta.open import DeltaCheckpoint, DeltaSlice, open_delta
from rlsparse_store.errors import CheckpointError
from rlsparse_store.format.names import printable
from rlsparse_store.integrations.dcp.keys import Keys
from rlsparse_store.torch.saved_parts import Part, saved_parts, shapes_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

__all__ = ["DeltaStorageReader"]


class DeltaStorageReader(StorageReader):
    """Loads a delta with ``torch.distributed.checkpoint``, on any number of ranks.

    Each rank decodes the slices that it holds, whichever ranks wrote them. Any delta can be
    loaded, not only one that :class:`DeltaStorageWriter` wrote.

    Args:
        delta: The delta: a folder, its URL in object storage, or ``org/name[@revision]``.
            ``checkpoint_id`` of the load replaces it.
        base: The base; by default the one that the delta names.
        prefix: What all keys of the state dict begin with, and the checkpoint's names do not.
        names: The checkpoint's names by the rest of the key, where they differ.
        model: The model of transformers that the state dict is of, if it renames weights or fuses
            experts.
        **options: Options of :func:`rlsparse_store.open_delta`, such as ``verify``.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> reader = DeltaStorageReader("run/step-100", "Qwen/Qwen2.5-7B")  # doctest: +SKIP
        >>> dcp.load(model.state_dict(), storage_reader=reader)  # doctest: +SKIP
    """

    def __init__(
        self,
        delta: str | os.PathLike[str] | None = None,
        base: str | os.PathLike[str] | None = None,
        *,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
        model: Any = None,  # noqa: ANN401 - a module
        **options: Any,  # noqa: ANN401 - of open_delta
    ) -> None:
        self._delta = delta
        self._base = base
        parts = None if model is None else saved_parts(model)
        self._keys = Keys(prefix, names or {}, parts)
        self._shapes = {} if model is None else shapes_of(model)
        self._options = options

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003 - torch's
        """Return whether this reader is chosen for a path: only if it is passed."""
        return False

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the place of the next delta."""
        if checkpoint_id is not None:
            self._delta = checkpoint_id

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401, ARG002 - torch's
        """Return the keys, dtypes and shapes of the delta's tensors."""
        with self._open() as delta:
            stored = self._stored(delta)
        return Metadata({key: of_key.metadata for key, of_key in stored.items()})

    def _stored(self, delta: DeltaCheckpoint) -> dict[str, _Stored]:
        """Return what the delta stores of each key."""
        slices = delta.slices()
        found: dict[str, _Stored] = {}
        for key, parts in self._keys.parts.items():
            if all(part.name in slices for part in parts):
                of_parts = [(part, slices.pop(part.name)) for part in parts]
                found[key] = _Stored(self._shapes[key.removeprefix(self._keys.prefix)], of_parts)
        for name, tensor in slices.items():
            found[self._keys.key(name)] = _Stored(
                tensor.shape, [(Part(name, 0, tensor.shape), tensor)]
            )
        return found

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001 - torch's
        *args: Any,  # noqa: ANN401 - torch's
        **kwargs: Any,  # noqa: ANN401 - torch's
    ) -> None:
        """Do nothing: every rank reads for itself."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Require that the delta stores what is asked for.

        Raises:
            CheckpointError: The state dict holds something else than tensors.
        """
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                msg = "is no tensor: a delta holds a model's weights; load the rest elsewhere"
                raise CheckpointError(msg, tensor=printable(item.dest_index.fqn))
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Decode slices into the tensors of this rank.

        Raises:
            FormatError: The delta is damaged, or the base is another checkpoint.
            CheckpointError: A tensor has another dtype than the delta's.
        """
        with self._open() as delta:
            stored = self._stored(delta)
            for item in sorted(plan.items, key=lambda item: item.storage_index.fqn):
                _read(stored[item.storage_index.fqn], item, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _open(self) -> DeltaCheckpoint:
        if self._delta is None:
            msg = "no delta: pass it to the reader, or checkpoint_id to load"
            raise CheckpointError(msg)
        return open_delta(self._delta, base=self._base, framework="pt", **self._options)


class _Stored:
    """A tensor of a state dict, and the tensors of a delta that are its parts.

    Args:
        shape: Its dimensions.
        parts: The parts, unread.
    """

    def __init__(self, shape: tuple[int, ...], parts: list[tuple[Part, DeltaSlice]]) -> None:
        self._shape = shape
        self._parts = {self._offsets(part): tensor for part, tensor in parts}

    def _offsets(self, part: Part) -> tuple[int, ...]:
        """Return the first index of a part in each dimension."""
        strides = [math.prod(self._shape[dim + 1 :]) for dim in range(len(self._shape))]
        return tuple(
            part.first // stride % size if size else 0
            for stride, size in zip(strides, self._shape, strict=True)
        )

    @property
    def metadata(self) -> TensorStorageMetadata:
        """The tensor as torch describes it: its parts as chunks."""
        first = next(iter(self._parts.values()))
        chunks = [
            # An expert has a dimension less than all of them.
            ChunkStorageMetadata(
                torch.Size(offsets),
                torch.Size((1,) * (len(self._shape) - len(part.shape)) + part.shape),
            )
            for offsets, part in self._parts.items()
        ]
        return TensorStorageMetadata(
            TensorProperties(dtype=first.dtype), torch.Size(self._shape), chunks
        )

    def read(self, item: ReadItem) -> torch.Tensor:
        """Read what an item asks of a part."""
        assert item.storage_index.offset is not None  # noqa: S101 - of a tensor
        part = self._parts[tuple(item.storage_index.offset)]
        extra = len(self._shape) - len(part.shape)
        ranges = zip(item.storage_offsets[extra:], item.lengths[extra:], strict=True)
        found: torch.Tensor = part[tuple(slice(first, first + count) for first, count in ranges)]
        return found.view(item.lengths)


def _read(stored: _Stored, item: ReadItem, planner: LoadPlanner) -> None:
    target = planner.resolve_tensor(item).detach()
    found = stored.read(item)
    if found.dtype != target.dtype:
        msg = f"is {target.dtype} in the state dict and {found.dtype} in the delta"
        raise CheckpointError(msg, tensor=printable(item.dest_index.fqn))
    target.copy_(found)
    planner.commit_tensor(item, target)
