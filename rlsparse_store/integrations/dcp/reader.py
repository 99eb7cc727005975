"""``DeltaStorageReader``: loads a delta into a state dict, each rank its own slices."""

from __future__ import annotations

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

from rlsparse_store.delta.open import DeltaCheckpoint, open_delta
from rlsparse_store.errors import CheckpointError
from rlsparse_store.format.names import printable
from rlsparse_store.integrations.dcp.keys import Keys

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
        delta: The delta: a folder or ``org/name[@revision]``. ``checkpoint_id`` of the load
            replaces it.
        base: The base; by default the one that the delta names.
        prefix: What all keys of the state dict begin with, and the checkpoint's names do not.
        names: The checkpoint's names by the rest of the key, where they differ.
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
        **options: Any,  # noqa: ANN401 - of open_delta
    ) -> None:
        self._delta = delta
        self._base = base
        self._keys = Keys(prefix, names or {})
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
            tensors = {self._keys.key(name): part for name, part in delta.slices().items()}
            return Metadata(
                {
                    key: TensorStorageMetadata(
                        TensorProperties(dtype=part.dtype),
                        torch.Size(part.shape),
                        [
                            ChunkStorageMetadata(
                                torch.Size([0] * len(part.shape)), torch.Size(part.shape)
                            )
                        ],
                    )
                    for key, part in tensors.items()
                }
            )

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
            names = {self._keys.key(name): name for name in delta}
            for item in sorted(plan.items, key=lambda item: item.storage_index.fqn):
                _read(delta, names[item.storage_index.fqn], item, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _open(self) -> DeltaCheckpoint:
        if self._delta is None:
            msg = "no delta: pass it to the reader, or checkpoint_id to load"
            raise CheckpointError(msg)
        return open_delta(self._delta, base=self._base, framework="pt", **self._options)


def _read(delta: DeltaCheckpoint, name: str, item: ReadItem, planner: LoadPlanner) -> None:
    target = planner.resolve_tensor(item).detach()
    part = delta.get_slice(name)
    if part.dtype != target.dtype:
        msg = f"is {target.dtype} in the state dict and {part.dtype} in the delta"
        raise CheckpointError(msg, tensor=printable(name))
    ranges = zip(item.storage_offsets, item.lengths, strict=True)
    target.copy_(part[tuple(slice(first, first + length) for first, length in ranges)])
    planner.commit_tensor(item, target)
