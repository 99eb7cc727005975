"""Streams of chunks read back on a device: changed words written there, or proven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlsparse_store.format.masks import ESCAPE
from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.chunk_table import ChunkTable, aligned
from rlsparse_store.gpu.context_map import ContextMap
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import (
    WIDE,
    firsts_of,
    launch,
    on_device,
    parts_of,
    programs_for,
    to_main,
    zeros,
)
from rlsparse_store.gpu.stream_layout import StreamLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.errors import StreamError
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.kernels.interface import CodedWords

__all__ = ["join_chunks"]


def join_chunks(
    chunks: Sequence[CodedWords],
    others: Sequence[torch.Tensor],
    coding: WordCoding,
    *,
    proves: bool = False,
) -> list[StreamError | None]:
    """Decode chunks and write their changed words, or prove that they are what is there.

    Args:
        chunks: The chunks.
        others: Where the changed words of each go, which may be its own words; or are, already.
        coding: Width and order map.
        proves: Whether changed words are compared instead of written.

    Returns:
        What is wrong with each chunk, if anything. If anything is, nothing was written, unless it
        is that a row without changes is flagged.
    """
    if not chunks:
        return []
    # Kernels only have their addresses: copies must live until the last one was launched.
    bases = [aligned(chunk.words) for chunk in chunks]
    table = ChunkTable.of(bases, others, [chunk.rows for chunk in chunks])
    marks = ContextMap.of(table, coding, [chunk.bounds for chunk in chunks], None)
    reading = StreamLayout(chunks, marks)
    if any(reading.problems):
        return reading.problems
    content = reading.load()
    masks, steps = _DeviceMasks(content, reading), _DeviceSteps(content, reading)
    found = to_main(masks.wrong, masks.unequal, steps.far, steps.lows, steps.wrong)
    reading.judge_masks(found[0], found[1])
    reading.judge_steps(*found[2:])
    if any(reading.problems):
        return reading.problems
    touched = torch.zeros_like(table.flags)
    differ = zeros(len(chunks), torch.int32, table.device)
    launch(kernels.patch_changes, table.tiles)(
        *(table.table, table.chunk_of_tile, marks.planes, marks.firsts),
        *on_device(table.device, reading.mask_bits, reading.firsts),
        *(content, masks.ones_before, steps.steps, touched, differ, table.groups),
        **marks.constants,
        HAS_ROWS=table.has_rows,
        PROVES=proves,
    )
    if table.has_rows or proves:
        _judge_result(reading, *to_main(touched, differ))
    return reading.problems


def _judge_result(
    reading: StreamLayout, touched: NDArray[np.uint8], differ: NDArray[np.int32]
) -> None:
    """Look at which rows have changes, and at which words are not what they should be."""
    rows = [chunk.rows for chunk in reading.chunks]
    flags = reading.marks.chunks.cut_flags(touched.view(np.bool_), rows)
    for i, (own, changed) in enumerate(zip(rows, flags, strict=True)):
        if own is not None and (own.active & ~changed).any():
            reading.blame(i, "a row without changes is flagged")
        elif differ[i]:
            reading.blame(i, "words are not what was coded")


class _DeviceMasks:
    """All masks as bits in the content, and how many bits are set before each word of it.

    Attributes:
        ones_before: Bits set before each int32 of the content.
        wrong: Of each mask of gaps, whether one leaves its context.
        unequal: Of each mask of bits, whether it does not mark as many words as it should.
    """

    def __init__(self, content: torch.Tensor, reading: StreamLayout) -> None:
        device = content.device
        self.wrong = zeros(len(reading.gaps), torch.int32, device)
        self._set_gaps(content, reading)
        counts = torch.empty_like(content)
        launch(kernels.count_ones, programs_for(content.numel(), sizes.RANKS))(
            content, counts, content.numel(), SIZE=sizes.RANKS
        )
        self.ones_before = torch.cumsum(counts, 0, dtype=torch.int32) - counts
        number = len(reading.dense)
        self.unequal = zeros(number, torch.int32, device)
        launch(kernels.compare_marks, programs_for(number, sizes.RANKS))(
            *(content, self.ones_before, *on_device(device, reading.dense), self.unequal, number),
            SIZE=sizes.RANKS,
        )

    def _set_gaps(self, content: torch.Tensor, reading: StreamLayout) -> None:
        if not len(reading.gaps):
            return
        parts = parts_of(reading.gaps[:, 1], sizes.RANKS)
        before = np.zeros(len(parts), np.int32)
        firsts = np.flatnonzero(parts[:, 1] == 0)
        for first, k, escaped in zip(firsts, reading.gaps[:, 1], reading.escaped, strict=True):
            if escaped.size:
                starts = np.arange(0, k, sizes.RANKS)
                before[first : first + starts.size] = np.searchsorted(escaped, starts)
        *told, begins = on_device(content.device, reading.gaps, parts, before, firsts_of(parts))
        sums = torch.empty(len(parts), dtype=torch.int64, device=content.device)
        constants = {"SIZE": sizes.RANKS, "COLUMNS": sizes.SEGMENT_COLUMNS, "ESCAPE": ESCAPE}
        launch(kernels.sum_gaps, len(parts))(content, *told, sums, **constants)
        ranks = _before(sums, begins)
        launch(kernels.set_gaps, len(parts))(content, *told, ranks, self.wrong, **constants)


def _before(values: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
    """The sum of the values of an owner's parts before each."""
    begun = torch.cumsum(values, 0) - values
    return begun - begun[firsts]


class _DeviceSteps:
    """The steps of all chunks.

    Attributes:
        steps: The steps.
        far: Far steps of each chunk.
        lows: Bits that their low bits take.
        wrong: Whether a step or an exponent is none.
    """

    def __init__(self, content: torch.Tensor, reading: StreamLayout) -> None:
        device = content.device
        number = len(reading.chunks)
        width = reading.marks.coding.width
        parts = parts_of(reading.streams[:, 1], sizes.STEPS)
        self.steps = torch.empty(reading.total, dtype=torch.int32, device=device)
        self.wrong = zeros(number, torch.int32, device)
        owners = parts[:, 0].astype(np.int64)
        *told, owner, firsts = on_device(device, reading.streams, parts, owners, firsts_of(parts))
        constants: dict[str, Any] = {"SIZE": sizes.STEPS, "COLUMNS": sizes.STREAM_COLUMNS}
        constants["num_warps"] = WIDE

        far = torch.empty(len(parts), dtype=torch.int64, device=device)
        launch(kernels.tally_far, len(parts))(content, *told, far, **constants)
        far_before = _before(far, firsts)
        self.far = zeros(number, torch.int64, device).index_add_(0, owner, far)
        lows = torch.empty_like(far)
        launch(kernels.tally_lows, len(parts))(
            *(content, *told, far, far_before, lows, self.wrong), WIDTH=width, **constants
        )
        self.lows = zeros(number, torch.int64, device).index_add_(0, owner, lows)
        exponents = (self.far + 1) // 2 if width <= 16 else self.far
        low_bits = 8 * (told[0].view(number, -1)[:, 4] + exponents)
        launch(kernels.read_steps, len(parts))(
            *(content, *told, far_before, _before(lows, firsts), low_bits),
            *(self.steps, self.wrong),
            WIDTH=width,
            **constants,
        )
