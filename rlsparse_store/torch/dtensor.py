"""DTensors, gathered one at a time when the writer reads them."""

from __future__ import annotations

import sys
import threading
from collections import Counter, OrderedDict
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.frameworks.torch import ReadableTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.distributed.tensor import DTensor

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.pipeline.spans import CodedSpan, Span
    from rlsparse_store.torch.process_group import Ranks

__all__ = ["DTensorReader", "GatherCoder", "Gatherer", "is_dtensor"]

_TRANSPORT_DTYPES: Final = {1: torch.uint8, 2: torch.bfloat16, 4: torch.int32, 8: torch.int64}
"""By bytes per element: dtypes that every communication backend supports."""


def is_dtensor(tensor: Any) -> bool:  # noqa: ANN401 - any value of a state dict
    """Return whether a tensor is a DTensor: each rank holds a part of it."""
    # Importing the module takes most of a second, and a DTensor exists only if it was imported.
    dtensor = sys.modules.get("torch.distributed.tensor")
    return dtensor is not None and isinstance(tensor, dtensor.DTensor)


class Gatherer:
    """Gathers DTensors on demand and caches the full tensors on the writer.

    The writer broadcasts the name of a tensor. Every rank then reports whether it can allocate the
    full tensor, and the ranks gather it only if all can: no rank waits for one that cannot join.

    Args:
        ranks: The ranks.
        tensors: DTensors by name, the same names on every rank.
        capacity: Bytes of full tensors to cache. One full tensor is cached whatever its size.
    """

    def __init__(self, ranks: Ranks, tensors: Mapping[str, Any], capacity: int) -> None:
        self._ranks = ranks
        self._tensors = tensors
        self._capacity = capacity
        self._cache: OrderedDict[object, torch.Tensor] = OrderedDict()
        self._users: Counter[object] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the bytes of a full tensor, gathering it if necessary, and pin it in the cache.

        A thread may hold only one tensor at a time: a second one could wait for the first forever.

        Raises:
            RlsparseError: A rank is out of memory, or has ended.
        """
        key = _storage_key(name, self._tensors[name])
        with self._changed:
            nbytes = self._tensors[name].numel() * self._tensors[name].element_size()
            self._changed.wait_for(lambda: key in self._cache or self._has_capacity(nbytes))
            if key not in self._cache:
                self._evict(nbytes)
                # Under the lock: all ranks gather the same tensors in the same order.
                self._cache[key] = self._gather(name)
            self._cache.move_to_end(key)
            self._users[key] += 1
            full = self._cache[key]
        try:
            yield full
        finally:
            with self._changed:
                self._users[key] -= 1
                self._changed.notify_all()

    def serve(self) -> Any:  # noqa: ANN401 - the writer's last message
        """Take part in the gathers that the writer starts.

        Returns:
            The writer's last message: the first one that is not a tensor name.
        """
        while isinstance(message := self._ranks.broadcast(None), str):
            if self._allocation_error(message) is None:
                self._all_gather(message)
        return message

    def _gather(self, name: str) -> torch.Tensor:
        self._ranks.broadcast(name)
        problem = self._allocation_error(name)
        if problem is not None:
            raise RlsparseError(problem, tensor=printable(name))
        return self._all_gather(name).view(-1).view(torch.uint8)

    def _all_gather(self, name: str) -> torch.Tensor:
        with self._ranks.collective():
            full = _full_tensor(self._tensors[name])
            if full.is_cuda:
                # Other threads read it on their own streams.
                torch.cuda.synchronize(full.device)
        return full

    def _allocation_error(self, name: str) -> str | None:
        """Return the first rank's allocation error, the same on every rank, or ``None``."""
        errors = self._ranks.all_gather(_try_allocation(self._tensors[name]))
        messages = [
            f"rank {rank} cannot allocate the full tensor: {error}"
            for rank, error in enumerate(errors)
            if error
        ]
        return messages[0] if messages else None

    def _cached_bytes(self, *, in_use: bool) -> int:
        """Bytes of all cached tensors, or only of those in use."""
        items = self._cache.items()
        return sum(full.numel() for key, full in items if self._users[key] or not in_use)

    def _has_capacity(self, nbytes: int) -> bool:
        in_use = self._cached_bytes(in_use=True)
        return in_use == 0 or in_use + nbytes <= self._capacity

    def _evict(self, nbytes: int) -> None:
        """Evict unused tensors, least recently used first, until ``nbytes`` fit."""
        for key in list(self._cache):
            if self._cached_bytes(in_use=False) + nbytes > self._capacity and not self._users[key]:
                del self._cache[key]


def _storage_key(name: str, tensor: Any) -> object:  # noqa: ANN401 - a DTensor
    """Return a key that tied names share: the memory of this rank's part."""
    local = tensor.to_local()
    return (local.data_ptr(), tuple(tensor.shape), tensor.dtype) if local.numel() else name


def _try_allocation(tensor: Any) -> str | None:  # noqa: ANN401 - a DTensor
    """Return the error of allocating what a gather needs, or ``None``."""
    device = tensor.device_mesh.device_type
    try:
        copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for _ in range(_copies_needed(tensor))
        ]
        # torch's allocator caches the freed memory for the gather.
        copies.clear()
    except (RuntimeError, MemoryError) as error:
        return str(error)
    return None


def _copies_needed(tensor: Any) -> int:  # noqa: ANN401 - a DTensor
    """Return how many full-size tensors a gather allocates.

    An all-gather concatenates parts along dimension 0; other placements need a second copy.
    """
    by_rows = all(p.is_shard(0) or p.is_replicate() or p.is_partial() for p in tensor.placements)
    return 1 if by_rows else 2


def _full_tensor(tensor: Any) -> torch.Tensor:  # noqa: ANN401 - a DTensor
    # Parts offloaded to main memory move back to the device of the mesh for communication.
    local: Any = tensor.detach().to(tensor.device_mesh.device_type)
    is_sum = any(placement.is_partial() for placement in tensor.placements)
    full: torch.Tensor = (local if is_sum else _as_transport(local)).full_tensor()
    return full.contiguous()


def _as_transport(tensor: Any) -> DTensor:  # noqa: ANN401 - a DTensor
    """View a DTensor in a transport dtype: some backends do not support 8-bit floats."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - see is_dtensor

    local = tensor.to_local().contiguous()
    # from_local needs the strides of the full tensor.
    stride = torch.empty(tensor.shape, device="meta").stride()
    return DTensor.from_local(
        local.view(_TRANSPORT_DTYPES[local.element_size()]),
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=stride,
    )


class DTensorReader(ReadableTensor):
    """A DTensor read as a full tensor. Only the writer may read it.

    Args:
        name: Name of the tensor.
        dtype: Dtype of the elements.
        shape: Dimensions of the full tensor, in elements.
        gatherer: Gathers the full tensor.
    """

    def __init__(self, name: str, dtype: Dtype, shape: tuple[int, ...], gatherer: Gatherer) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._gatherer = gatherer

    @property
    def data(self) -> torch.Tensor:
        """The row-major bytes, on this rank's device."""
        with self._gatherer.hold(self.name) as full:
            return full


class GatherCoder:
    """Codes spans and keeps each DTensor in the cache while its spans are coded.

    Args:
        coder: Codes the spans.
        gatherer: Gathers the DTensors.
        names: Names of the DTensors.
    """

    def __init__(self, coder: SpanCoder, gatherer: Gatherer, names: set[str]) -> None:
        self._coder = coder
        self._gatherer = gatherer
        self._names = names

    @property
    def batch_bytes(self) -> int:
        """0, for one span at a time: a thread may hold only one tensor."""
        return 0

    def weigh(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> int:  # noqa: ARG002 - protocol of coders
        """Return the bytes that a span reads."""
        return span.nbytes

    def code(self, spans: Sequence[Span], base: Checkpoint, tuned: Checkpoint) -> list[CodedSpan]:
        """Encode spans one by one.

        Raises:
            RlsparseError: A rank cannot allocate a tensor, a checkpoint cannot be read, or a chunk
                does not decode to itself.
        """
        return [self._code(span, base, tuned) for span in spans]

    def _code(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> CodedSpan:
        name = span.plan.tuned.name
        held = self._gatherer.hold(name) if name in self._names else nullcontext()
        with held:
            return self._coder.code([span], base, tuned)[0]
