"""Tensors that are split over ranks (DTensor), brought together one by one where they are read."""

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

__all__ = ["GatherCoder", "Gatherer", "SplitTensor", "is_split"]

_MOVED: Final = {1: torch.uint8, 2: torch.bfloat16, 4: torch.int32, 8: torch.int64}


def is_split(tensor: Any) -> bool:  # noqa: ANN401 - anything a state dict holds
    """Whether a tensor is a DTensor, of which each rank has its part."""
    # No one has one who did not import it, which takes most of a second.
    dtensor = sys.modules.get("torch.distributed.tensor")
    return dtensor is not None and isinstance(tensor, dtensor.DTensor)


class Gatherer:
    """Split tensors, each brought together when the writer reads it.

    The writer says which tensor it needs; every rank says whether it has room for all of it, and
    only if all have, they gather it. So no rank is ever waited for that cannot take part.

    Args:
        ranks: The ranks.
        tensors: The split tensors, the same on every rank.
        room: Bytes of tensors to keep; one of them is kept whatever it takes.
    """

    def __init__(self, ranks: Ranks, tensors: Mapping[str, Any], capacity: int) -> None:
        self._ranks = ranks
        self._tensors = tensors
        self._capacity = capacity
        self._whole: OrderedDict[object, torch.Tensor] = OrderedDict()
        self._holders: Counter[object] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, name: str) -> Iterator[torch.Tensor]:
        """Bring a tensor together, unless it is, and keep it for as long as the block runs.

        Whoever holds one may not ask for another: it would wait for its own to be let go.

        Raises:
            RlsparseError: A rank has no room for it, or is gone.
        """
        key = _place(name, self._tensors[name])
        with self._changed:
            nbytes = self._tensors[name].numel() * self._tensors[name].element_size()
            self._changed.wait_for(lambda: key in self._whole or self._has_capacity(nbytes))
            if key not in self._whole:
                self._forget(nbytes)
                # Within the lock: all ranks gather one tensor at a time, in one order.
                self._whole[key] = self._gather(name)
            self._whole.move_to_end(key)
            self._holders[key] += 1
            whole = self._whole[key]
        try:
            yield whole
        finally:
            with self._changed:
                self._holders[key] -= 1
                self._changed.notify_all()

    def serve(self) -> Any:  # noqa: ANN401 - the writer's last word
        """Take part in what the writer gathers, until it says its last word.

        Returns:
            That word: anything but the name of a tensor.
        """
        while isinstance(word := self._ranks.say(None), str):
            if self._refusal(word) is None:
                self._together(word)
        return word

    def _gather(self, name: str) -> torch.Tensor:
        self._ranks.say(name)
        refusal = self._refusal(name)
        if refusal is not None:
            raise RlsparseError(refusal, tensor=printable(name))
        return self._together(name).view(-1).view(torch.uint8)

    def _together(self, name: str) -> torch.Tensor:
        with self._ranks.speaking():
            whole = _full(self._tensors[name])
            if whole.is_cuda:
                # Other threads read it on streams of their own.
                torch.cuda.synchronize(whole.device)
        return whole

    def _refusal(self, name: str) -> str | None:
        """Why a tensor cannot be gathered, if it cannot: every rank finds the same."""
        found = self._ranks.collect(_shortage(self._tensors[name]))
        refusals = [
            f"rank {rank} has no room for it: {why}" for rank, why in enumerate(found) if why
        ]
        return refusals[0] if refusals else None

    def _nbytes(self, *, held: bool) -> int:
        """Bytes of what is kept, or of what is held."""
        kept = self._whole.items()
        return sum(whole.numel() for key, whole in kept if self._holders[key] or not held)

    def _has_capacity(self, nbytes: int) -> bool:
        held = self._nbytes(held=True)
        return held == 0 or held + nbytes <= self._capacity

    def _forget(self, nbytes: int) -> None:
        """Let go of what nobody holds, oldest first, until so many bytes have room."""
        for key in list(self._whole):
            if self._nbytes(held=False) + nbytes > self._capacity and not self._holders[key]:
                del self._whole[key]


def _place(name: str, tensor: Any) -> object:  # noqa: ANN401 - a DTensor
    """What tied names have in common: the memory of this rank's part."""
    local = tensor.to_local()
    return (local.data_ptr(), tuple(tensor.shape), tensor.dtype) if local.numel() else name


def _shortage(tensor: Any) -> str | None:  # noqa: ANN401 - a DTensor
    """Why there is no room to gather all of a tensor, if there is none."""
    device = tensor.device_mesh.device_type
    try:
        copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for _ in range(_copies(tensor))
        ]
        # Given back at once: torch keeps it for what is gathered next.
        copies.clear()
    except (RuntimeError, MemoryError) as error:
        return str(error)
    return None


def _copies(tensor: Any) -> int:  # noqa: ANN401 - a DTensor
    """How many whole tensors there are while one is gathered.

    Parts arrive one after the other. If they are not rows, they are then put together anew.
    """
    by_rows = all(p.is_shard(0) or p.is_replicate() or p.is_partial() for p in tensor.placements)
    return 1 if by_rows else 2


def _full(tensor: Any) -> torch.Tensor:  # noqa: ANN401 - a DTensor
    # Parts that are offloaded to main memory are gathered where the ranks can reach each other.
    there: Any = tensor.detach().to(tensor.device_mesh.device_type)
    is_sum = any(placement.is_partial() for placement in tensor.placements)
    whole: torch.Tensor = (there if is_sum else _as_moved(there)).full_tensor()
    return whole.contiguous()


def _as_moved(tensor: Any) -> DTensor:  # noqa: ANN401 - a DTensor
    """The same bits in a dtype that every way between ranks moves: not all move 8-bit floats."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - see is_split

    local = tensor.to_local().contiguous()
    # torch asks for the strides of the whole.
    stride = torch.empty(tensor.shape, device="meta").stride()
    return DTensor.from_local(
        local.view(_MOVED[local.element_size()]),
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=stride,
    )


class SplitTensor(ReadableTensor):
    """A tensor of which each rank has a part, read as if it were whole. The writer's only.

    Args:
        name: Its name.
        dtype: Its dtype.
        shape: Its dimensions, in elements, over all ranks.
        gathered: What brings it together.
    """

    def __init__(self, name: str, dtype: Dtype, shape: tuple[int, ...], gathered: Gatherer) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.gathered = gathered

    @property
    def data(self) -> torch.Tensor:
        """Its bytes, row by row, on this rank's device."""
        with self.gathered.hold(self.name) as whole:
            return whole


class GatherCoder:
    """Codes spans of tensors that stay together while they are coded.

    Args:
        coder: Codes them.
        gathered: What brings them together.
        names: The names of those that are split.
    """

    def __init__(self, coder: SpanCoder, gathered: Gatherer, names: set[str]) -> None:
        self._coder = coder
        self._gatherer = gathered
        self._names = names

    @property
    def group_bytes(self) -> int:
        """Of one task at a time: whoever holds a tensor may not ask for another."""
        return 0

    def weigh(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> int:  # noqa: ARG002 - a device asks
        """Bytes that the span reads."""
        return span.nbytes

    def code(self, spans: Sequence[Span], base: Checkpoint, tuned: Checkpoint) -> list[CodedSpan]:
        """Encode spans one by one.

        Raises:
            RlsparseError: A rank has no room for a tensor, a checkpoint cannot be read, or a
                chunk does not decode to itself.
        """
        return [self._code(span, base, tuned) for span in spans]

    def _code(self, span: Span, base: Checkpoint, tuned: Checkpoint) -> CodedSpan:
        name = span.plan.tuned.name
        held = self._gatherer.hold(name) if name in self._names else nullcontext()
        with held:
            return self._coder.code([span], base, tuned)[0]
