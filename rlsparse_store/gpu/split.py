"""Splitting chunks on a device into streams, which are copied to main memory."""

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
from rlsparse_store.gpu.launch import (
    NUM_WARPS,
    firsts_of,
    launch,
    parts_of,
    to_device,
    to_host,
    zeros,
)
from rlsparse_store.kernels.interface import Rows, Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.chunk_words import ChunkWords

__all__ = ["low_widths", "partitions", "scatter"]


def partitions(
    chunks: Sequence[ChunkWords],
    coding: WordCoding,
    bounds: Sequence[NDArray[np.uint64]],
    rows: Sequence[Rows | None],
) -> list[Streams]:
    """Split chunks into the streams of their contexts."""
    if not chunks:
        return []
    table = table_of(chunks, rows)
    contexts = ContextMap.of(table, coding, bounds, chunks[0].bits)
    ranks, steps = scatter(contexts, chunks[0].bits)
    masks = _Masks.of(contexts, ranks)
    values = _Values.of(contexts, steps)
    masks.count()
    values.count()
    counted = to_host(masks.escapes, values.far, values.lows, values.kinds)
    layout = _Layout.of(contexts, masks.sizes(counted[0]), values.sizes(counted[1], counted[2]))
    content = zeros(-(-layout.nbytes // 4) + 2, torch.int32, table.device)
    masks.write(content, layout, counted[0])
    values.write(content, layout, counted[1], counted[2])
    (words,) = to_host(content)
    return layout.streams(words.view(np.uint8).data, bounds, rows, counted[3])


def scatter(contexts: ContextMap, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rank in its context and the step of each changed word, as int32.

    The words are ordered by chunk, context and position.
    """
    table = contexts.chunks
    ranks = torch.empty(int(contexts.changed.sum()), dtype=torch.int32, device=table.device)
    steps = torch.empty_like(ranks)
    launch(kernels.scatter_changes, table.tiles)(
        *(table.table, table.chunk_of_tile, contexts.planes, bits, contexts.firsts),
        *(ranks, steps, table.groups),
        **contexts.constants,
    )
    return ranks, steps


def low_widths(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the low bits per gap of each context; a vectorized ``format.masks.low_width``.

    Example:
        >>> low_widths(np.array([12, 24, 23]), np.array([1, 1, 1])).tolist()
        [1, 2, 1]
    """
    # The binary exponent of an exact float64 is the bit length of the integer.
    return np.frexp((n // (DENSE * k)).astype(np.float64))[1].astype(np.int64) - 1


@dataclass(frozen=True, slots=True)
class _Layout:
    """The position of each stream in the concatenated contents of all chunks.

    Attributes:
        starts: First byte of each chunk's streams: a mask for each slot, signs, classes,
            exponents, low bits; ``[chunks, SLOTS + 4]``.
        sizes: Bytes of each stream.
        contexts: The contexts.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    contexts: ContextMap

    @classmethod
    def of(
        cls, contexts: ContextMap, masks: NDArray[np.int64], values: NDArray[np.int64]
    ) -> _Layout:
        """Lay the streams out one after the other, chunk by chunk."""
        nbytes = np.concatenate([masks, values], 1)
        return cls((np.cumsum(nbytes) - nbytes.ravel()).reshape(nbytes.shape), nbytes, contexts)

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return int(self.sizes.sum())

    def streams(
        self,
        data: memoryview,
        bounds: Sequence[NDArray[np.uint64]],
        rows: Sequence[Rows | None],
        kinds: NDArray[np.int32],
    ) -> list[Streams]:
        """Return the streams of each chunk.

        Args:
            data: Contents of all chunks.
            bounds: Inclusive upper keys of the contexts of each chunk.
            rows: Active rows of each chunk; ``None`` without row flags.
            kinds: Number of steps of each chunk by kind.
        """
        totals = self.sizes.sum(1)
        ends = np.cumsum(totals)
        numbers = (
            self.contexts.counts,
            self.contexts.changed,
            self.sizes,
            ends - totals,
            ends,
            kinds,
        )
        return [
            Streams(
                bounds=upper,
                rows=active,
                counts=counts[: upper.size],
                changed=changed[: upper.size],
                content=data[start:end],
                sizes=nbytes[: upper.size] + nbytes[sizes.SLOTS :],
                steps=steps,
            )
            for upper, active, counts, changed, nbytes, start, end, steps in zip(
                bounds, rows, *(each.tolist() for each in numbers), strict=True
            )
        ]


def _sums(values: NDArray[Any], parts: NDArray[np.int32], owners: int) -> NDArray[np.int64]:
    """Return the sum of the values of each owner's parts."""
    return np.bincount(parts[:, 0], values, owners).astype(np.int64)


def _before(values: NDArray[Any], parts: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return, for each part, the sum of the values of its owner's earlier parts."""
    total = np.cumsum(values, dtype=np.int64) - values
    before: NDArray[np.int64] = total - total[firsts_of(parts)]
    return before


@dataclass(frozen=True, slots=True)
class _Masks:
    """The masks of contexts in which some but not all words changed.

    Attributes:
        ranks: Ranks of all changed words.
        slots: Chunk and slot of each mask, as an index of a ``[chunks, SLOTS]`` array.
        n: Words of each context.
        table: The columns of ``sizes.SEGMENT_COLUMNS`` for each mask; positions are still 0.
        parts: Owner and number of each part of the changed words.
        tables: Copies of ``table`` and ``parts`` on the device.
        escapes: Number of escaped gaps of each part.
        shape: Number of chunks and slots.
    """

    ranks: torch.Tensor
    slots: tuple[NDArray[np.intp], ...]
    n: NDArray[np.int64]
    table: NDArray[np.int64]
    parts: NDArray[np.int32]
    tables: list[torch.Tensor]
    escapes: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, contexts: ContextMap, ranks: torch.Tensor) -> _Masks:
        """Find the masks."""
        n, k = contexts.counts, contexts.changed
        firsts = (np.cumsum(k) - k.ravel()).reshape(k.shape)
        slots = np.nonzero((k > 0) & (k < n))
        own_n, own_k = n[slots], k[slots]
        table = np.zeros((own_n.size, sizes.SEGMENT_COLUMNS), np.int64)
        table[:, 0], table[:, 1] = firsts[slots], own_k
        table[:, 2] = np.where(own_k * DENSE >= own_n, -1, low_widths(own_n, own_k))
        parts = parts_of(own_k, sizes.RANKS)
        device = ranks.device
        escapes = zeros(len(parts), torch.int32, device)
        tables = to_device(device, table, parts)
        return cls(ranks, slots, own_n, table, parts, tables, escapes, k.shape)

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time constants of the kernels."""
        return {"SIZE": sizes.RANKS, "COLUMNS": sizes.SEGMENT_COLUMNS, "ESCAPE": ESCAPE}

    def count(self) -> None:
        """Count the escaped gaps."""
        launch(kernels.count_escapes, len(self.parts))(
            *(self.ranks, *self.tables, self.escapes),
            **self.constants,
        )

    def sizes(self, escapes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the bytes of each mask, given the escaped gaps."""
        k, width = self.table[:, 1], self.table[:, 2]
        gaps = -(-k * width // 8) + k + 4 * _sums(escapes, self.parts, k.size)
        nbytes = np.zeros(self.shape, np.int64)
        nbytes[self.slots] = np.where(width < 0, -(-self.n // 8), gaps)
        return nbytes

    def write(self, content: torch.Tensor, layout: _Layout, escapes: NDArray[np.int32]) -> None:
        """Write the masks to the content."""
        k, width = self.table[:, 1], self.table[:, 2]
        start = layout.starts[self.slots]
        table = self.table.copy()
        table[:, 3] = 8 * start
        table[:, 4] = start + -(-k * width // 8)
        table[:, 5] = table[:, 4] + k
        before = _before(escapes, self.parts).astype(np.int32)
        segments, escapes_before = to_device(content.device, table, before)
        launch(kernels.write_masks, len(self.parts))(
            *(self.ranks, segments, self.tables[1], escapes_before, content),
            **self.constants,
        )


@dataclass(frozen=True, slots=True)
class _Values:
    """The steps of the changed words of each chunk.

    Attributes:
        steps: All steps.
        width: Bits of a word.
        table: The columns of ``sizes.STREAM_COLUMNS`` for each chunk; positions are still 0.
        parts: Owner and number of each part of the steps.
        tables: Copies of ``table`` and ``parts`` on the device.
        far: Number of far steps of each part.
        lows: Number of low bits of each part.
        kinds: Number of steps of each chunk by kind.
    """

    steps: torch.Tensor
    width: int
    table: NDArray[np.int64]
    parts: NDArray[np.int32]
    tables: list[torch.Tensor]
    far: torch.Tensor
    lows: torch.Tensor
    kinds: torch.Tensor

    @classmethod
    def of(cls, contexts: ContextMap, steps: torch.Tensor) -> _Values:
        """Prepare the steps of each chunk."""
        numbers = contexts.changed.sum(1)
        table = np.zeros((numbers.size, sizes.STREAM_COLUMNS), np.int64)
        table[:, 0], table[:, 1] = np.cumsum(numbers) - numbers, numbers
        parts = parts_of(numbers, sizes.STEPS)
        device = steps.device
        far, lows = (zeros(len(parts), torch.int32, device) for _ in range(2))
        kinds = zeros((numbers.size, 8), torch.int32, device)
        tables = to_device(device, table, parts)
        return cls(steps, contexts.coding.width, table, parts, tables, far, lows, kinds)

    def count(self) -> None:
        """Count the steps by kind, and the low bits."""
        launch(kernels.count_steps, len(self.parts))(
            *(self.steps, *self.tables),
            *(self.far, self.lows, self.kinds),
            SIZE=sizes.STEPS,
            COLUMNS=sizes.STREAM_COLUMNS,
            num_warps=NUM_WARPS,
        )

    def sizes(self, far: NDArray[np.int32], lows: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the bytes of signs, classes, exponents and low bits of each chunk."""
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
        """Write the streams to the content."""
        table = self.table.copy()
        table[:, 2:6] = layout.starts[:, sizes.SLOTS :]
        table[:, 5] *= 8
        before = [_before(found, self.parts) for found in (far, lows)]
        streams, *sums = to_device(content.device, table, *before)
        launch(kernels.write_steps, len(self.parts))(
            *(self.steps, streams, self.tables[1], *sums, content),
            WIDTH=self.width,
            SIZE=sizes.STEPS,
            COLUMNS=sizes.STREAM_COLUMNS,
            num_warps=NUM_WARPS,
        )
