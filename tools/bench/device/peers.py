"""What trainers do that send indices and values: int32 and bfloat16, then zstd-1."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
import zstandard

from device.weights import changed_words
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from device.weights import Tensors


@dataclass(frozen=True, slots=True)
class _Lane:
    """What a thread works with, made once.

    Attributes:
        stream: A stream of CUDA, or ``None`` on a CPU.
        places: Pinned memory for indices.
        values: Pinned memory for values.
        packer: Compresses them.
    """

    stream: Any
    places: torch.Tensor
    values: torch.Tensor
    packer: zstandard.ZstdCompressor

    @classmethod
    def of(cls, device: torch.device, most: int) -> _Lane:
        """A lane for so many changed words at most."""
        pins = device.type == "cuda"
        stream = torch.cuda.Stream(device) if pins else None  # type: ignore[no-untyped-call]
        places = torch.empty(most, dtype=torch.int32, pin_memory=pins)
        values = torch.empty(most, dtype=torch.bfloat16, pin_memory=pins)
        return cls(stream, places, values, zstandard.ZstdCompressor(level=1))


class Peer:
    """``ne``, ``nonzero``, gather, to the host, zstd-1, on all threads; and ``index_copy_`` back.

    Args:
        base: Base weights.
        tuned: Tuned weights.
    """

    def __init__(self, base: Tensors, tuned: Tensors) -> None:
        self._device = device = next(iter(base.values())).device
        self._base, self._tuned = base, tuned
        most = max(changed_words(base, tuned).values())
        threads = min(resolve_threads(None), len(base))
        self._pool = ThreadPoolExecutor(threads)
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        for _ in range(threads):
            self._lanes.put(_Lane.of(device, most))
        self._sent = {name: _pinned(device, *self._changes(name)) for name in base}
        self.stored = 0

    def encode(self) -> None:
        """From weights on the device to compressed bytes."""
        self.stored = sum(self._pool.map(self._pack, self._base))

    def apply(self, model: Tensors) -> None:
        """From indices and values in pinned memory to weights on the device."""
        for name, (places, values) in self._sent.items():
            there = places.to(self._device, non_blocking=True).to(torch.int64)
            new = values.to(self._device, non_blocking=True)
            model[name].view(-1).index_copy_(0, there, new)

    def _changes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        new = self._tuned[name].view(-1)
        places = torch.ne(self._base[name].view(-1), new).nonzero().view(-1)
        return places.to(torch.int32), new[places]

    def _pack(self, name: str) -> int:
        """Bytes that a tensor's changes take."""
        with self._lane() as lane:
            places, values = self._changes(name)
            parts = lane.places[: len(places)], lane.values[: len(values)]
            for part, found in zip(parts, (places, values), strict=True):
                part.copy_(found, non_blocking=True)
            if lane.stream is not None:
                lane.stream.synchronize()
            data = [part.view(torch.uint8).numpy().data for part in parts]
            return sum(len(lane.packer.compress(part)) for part in data)

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """A lane that no other thread works on, whose stream is the current one."""
        lane = self._lanes.get()
        try:
            with nullcontext() if lane.stream is None else torch.cuda.stream(lane.stream):
                yield lane
        finally:
            self._lanes.put(lane)


def _pinned(device: torch.device, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Copies in main memory."""
    copies = tuple(tensor.cpu() for tensor in tensors)
    return tuple(copy.pin_memory() for copy in copies) if device.type == "cuda" else copies
