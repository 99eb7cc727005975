"""Chunks on a device split into their streams, which come back to main memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlsparse_store.format.masks import DENSE, ESCAPE
from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.context_map import ContextMap
from rlsparse_store.gpu.diff import table_of
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import WIDE, firsts_of, launch, on_device, parts_of, to_main, zeros
from rlsparse_store.kernels.interface import Rows, Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.diff import DiffWords

__all__ = ["low_widths", "partitions", "scatter"]


def partitions(
    chunks: Sequence[DiffWords],
    coding: WordCoding,
    bounds: Sequence[NDArray[np.uint64]],
    rows: Sequence[Rows | None],
) -> list[Streams]:
    """Split chunks into the streams of their contexts, as a backend does."""
    if not chunks:
        return []
    table = table_of(chunks, rows)
    marks = ContextMap.of(table, coding, bounds, chunks[0].bits)
    ranks, steps = scatter(marks, chunks[0].bits)
    masks = _Masks.of(marks, ranks)
    values = _Values.of(marks, steps)
    masks.count()
    values.count()
    counted = to_main(masks.escapes, values.far, values.lows, values.kinds)
    layout = _Layout.of(marks, masks.sizes(counted[0]), values.sizes(counted[1], counted[2]))
    content = zeros(-(-layout.nbytes // 4) + 2, torch.int32, table.device)
    masks.write(content, layout, counted[0])
    values.write(content, layout, counted[1], counted[2])
    (words,) = to_main(content)
    return layout.streams(words.view(np.uint8).data, list(map(len, bounds)), counted[3])


def scatter(marks: ContextMap, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank within its context and the step of each changed word, as int32.

    They are ordered by chunk, context and position.
    """
    table = marks.chunks
    ranks = torch.empty(int(marks.changed.sum()), dtype=torch.int32, device=table.device)
    steps = torch.empty_like(ranks)
    launch(kernels.scatter_changes, table.tiles)(
        *(table.table, table.chunk_of_tile, marks.planes, bits, marks.firsts),
        *(ranks, steps, table.groups),
        **marks.constants,
    )
    return ranks, steps


def low_widths(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Low bits of the gaps of contexts, as :func:`rlsparse_store.format.masks.low_width`.

    Example:
        >>> low_widths(np.array([12, 24, 23]), np.array([1, 1, 1])).tolist()
        [1, 2, 1]
    """
    # The exponent of a number that float64 holds exactly is its bit length.
    return np.frexp((n // (DENSE * k)).astype(np.float64))[1].astype(np.int64) - 1


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each stream lies in the content of all chunks, which lie one behind the other.

    Attributes:
        starts: First byte of each chunk's streams: a mask for each slot, signs, classes,
            exponents, low bits; ``[chunks, SLOTS + 4]``.
        sizes: Bytes of each.
        marks: What is stored.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    marks: ContextMap

    @classmethod
    def of(cls, marks: ContextMap, masks: NDArray[np.int64], values: NDArray[np.int64]) -> _Layout:
        """One stream behind the other, chunk by chunk."""
        nbytes = np.concatenate([masks, values], 1)
        return cls((np.cumsum(nbytes) - nbytes.ravel()).reshape(nbytes.shape), nbytes, marks)

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return int(self.sizes.sum())

    def streams(
        self, data: memoryview, contexts: list[int], kinds: NDArray[np.int32]
    ) -> list[Streams]:
        """The streams of each chunk.

        Args:
            data: The content of all.
            contexts: Contexts of each.
            kinds: Steps of each by kind.
        """
        totals = self.sizes.sum(1)
        ends = np.cumsum(totals)
        numbers = (self.marks.counts, self.marks.changed, self.sizes, ends - totals, ends, kinds)
        return [
            Streams(
                counts=counts[:own],
                changed=changed[:own],
                content=data[start:end],
                sizes=nbytes[:own] + nbytes[sizes.SLOTS :],
                steps=steps,
            )
            for own, counts, changed, nbytes, start, end, steps in zip(
                contexts, *(each.tolist() for each in numbers), strict=True
            )
        ]


def _sums(values: NDArray[Any], parts: NDArray[np.int32], owners: int) -> NDArray[np.int64]:
    """Sums of the values of each owner's parts."""
    return np.bincount(parts[:, 0], values, owners).astype(np.int64)


def _before(values: NDArray[Any], parts: NDArray[np.int32]) -> NDArray[np.int64]:
    """The sum of the values of an owner's parts before each; parts lie owner by owner."""
    begun = np.cumsum(values, dtype=np.int64) - values
    before: NDArray[np.int64] = begun - begun[firsts_of(parts)]
    return before


@dataclass(frozen=True, slots=True)
class _Masks:
    """The masks of contexts of which some words changed, but not all.

    Attributes:
        ranks: Ranks of all changed words.
        places: Which slots of which chunks they are, as an index of a matrix of both.
        n: Words of each.
        table: What ``sizes.SEGMENT_COLUMNS`` lists of each, where streams lie still zero.
        parts: Parts of changed words, as the kernels are told of them.
        told: Both of these, on the device.
        escapes: Gaps of each part whose high bits take more than a byte.
        shape: Chunks and slots.
    """

    ranks: torch.Tensor
    places: tuple[NDArray[np.intp], ...]
    n: NDArray[np.int64]
    table: NDArray[np.int64]
    parts: NDArray[np.int32]
    told: list[torch.Tensor]
    escapes: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, marks: ContextMap, ranks: torch.Tensor) -> _Masks:
        """The masks that there are."""
        n, k = marks.counts, marks.changed
        firsts = (np.cumsum(k) - k.ravel()).reshape(k.shape)
        places = np.nonzero((k > 0) & (k < n))
        own_n, own_k = n[places], k[places]
        table = np.zeros((own_n.size, sizes.SEGMENT_COLUMNS), np.int64)
        table[:, 0], table[:, 1] = firsts[places], own_k
        table[:, 2] = np.where(own_k * DENSE >= own_n, -1, low_widths(own_n, own_k))
        parts = parts_of(own_k, sizes.RANKS)
        device = ranks.device
        escapes = zeros(len(parts), torch.int32, device)
        told = on_device(device, table, parts)
        return cls(ranks, places, own_n, table, parts, told, escapes, k.shape)

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels are compiled for."""
        return {"SIZE": sizes.RANKS, "COLUMNS": sizes.SEGMENT_COLUMNS, "ESCAPE": ESCAPE}

    def count(self) -> None:
        """Count the gaps that escape."""
        launch(kernels.tally_gaps, len(self.parts))(
            *(self.ranks, *self.told, self.escapes),
            **self.constants,
        )

    def sizes(self, escapes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Bytes of each mask, once it is known what escapes."""
        k, width = self.table[:, 1], self.table[:, 2]
        gaps = -(-k * width // 8) + k + 4 * _sums(escapes, self.parts, k.size)
        found = np.zeros(self.shape, np.int64)
        found[self.places] = np.where(width < 0, -(-self.n // 8), gaps)
        return found

    def write(self, content: torch.Tensor, layout: _Layout, escapes: NDArray[np.int32]) -> None:
        """Write the masks to their places."""
        k, width = self.table[:, 1], self.table[:, 2]
        start = layout.starts[self.places]
        table = self.table.copy()
        table[:, 3] = 8 * start
        table[:, 4] = start + -(-k * width // 8)
        table[:, 5] = table[:, 4] + k
        before = _before(escapes, self.parts).astype(np.int32)
        places, escaped = on_device(content.device, table, before)
        launch(kernels.write_masks, len(self.parts))(
            *(self.ranks, places, self.told[1], escaped, content),
            **self.constants,
        )


@dataclass(frozen=True, slots=True)
class _Values:
    """The steps of the changed words of each chunk.

    Attributes:
        steps: All steps.
        width: Bits of a word.
        table: What ``sizes.STREAM_COLUMNS`` lists of each chunk, where streams lie still zero.
        parts: Parts of steps, as the kernels are told of them.
        told: Both of these, on the device.
        far: Far steps of each part.
        lows: What their low bits take.
        kinds: Steps of each chunk by kind.
    """

    steps: torch.Tensor
    width: int
    table: NDArray[np.int64]
    parts: NDArray[np.int32]
    told: list[torch.Tensor]
    far: torch.Tensor
    lows: torch.Tensor
    kinds: torch.Tensor

    @classmethod
    def of(cls, marks: ContextMap, steps: torch.Tensor) -> _Values:
        """The steps of each chunk."""
        numbers = marks.changed.sum(1)
        table = np.zeros((numbers.size, sizes.STREAM_COLUMNS), np.int64)
        table[:, 0], table[:, 1] = np.cumsum(numbers) - numbers, numbers
        parts = parts_of(numbers, sizes.STEPS)
        device = steps.device
        far, lows = (zeros(len(parts), torch.int32, device) for _ in range(2))
        kinds = zeros((numbers.size, 8), torch.int32, device)
        told = on_device(device, table, parts)
        return cls(steps, marks.coding.width, table, parts, told, far, lows, kinds)

    def count(self) -> None:
        """Count the kinds of steps."""
        launch(kernels.tally_steps, len(self.parts))(
            *(self.steps, *self.told),
            *(self.far, self.lows, self.kinds),
            SIZE=sizes.STEPS,
            COLUMNS=sizes.STREAM_COLUMNS,
            num_warps=WIDE,
        )

    def sizes(self, far: NDArray[np.int32], lows: NDArray[np.int32]) -> NDArray[np.int64]:
        """Bytes of signs, classes, exponents and low bits of each chunk."""
        number = self.table[:, 1]
        m, bits = (_sums(found, self.parts, number.size) for found in (far, lows))
        exponents = -(-m // 2) if self.width <= 16 else m
        return np.stack([-(-number // 8), -(-number // 4), exponents, -(-bits // 8)], 1)

    def write(
        self,
        content: torch.Tensor,
        layout: _Layout,
        far: NDArray[np.int32],
        lows: NDArray[np.int32],
    ) -> None:
        """Write the streams to their places."""
        table = self.table.copy()
        table[:, 2:6] = layout.starts[:, sizes.SLOTS :]
        table[:, 5] *= 8
        before = [_before(found, self.parts) for found in (far, lows)]
        places, *sums = on_device(content.device, table, *before)
        launch(kernels.write_steps, len(self.parts))(
            *(self.steps, places, self.told[1], *sums, content),
            WIDTH=self.width,
            SIZE=sizes.STEPS,
            COLUMNS=sizes.STREAM_COLUMNS,
            num_warps=WIDE,
        )
