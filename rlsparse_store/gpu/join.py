"""Decoding streams on a device, to write or to verify changed words."""

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
    NUM_WARPS,
    firsts_of,
    launch,
    num_programs,
    parts_of,
    to_device,
    to_host,
    zeros,
)
from rlsparse_store.gpu.stream_layout import StreamLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.errors import StreamError
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.chunk_words import CodedWords

__all__ = ["join_chunks", "verify_chunks"]


def join_chunks(chunks: Sequence[CodedWords], coding: WordCoding) -> list[StreamError | None]:
    """Decode chunks in place.

    Args:
        chunks: The chunks.
        coding: Width and order map.

    Returns:
        The error of each chunk or ``None``. If there is an error, nothing was written, except for
        the error of a flagged row without changes.
    """
    return _join(chunks, [chunk.words for chunk in chunks], coding, verifies=False)


def verify_chunks(
    chunks: Sequence[CodedWords], tuned: Sequence[torch.Tensor], coding: WordCoding
) -> list[StreamError | None]:
    """Decode chunks without writing, and report those that differ from the tuned words.

    Only changed words are compared: the diff has compared the others.

    Args:
        chunks: The chunks.
        tuned: The tuned words of each.
        coding: Width and order map.

    Returns:
        The error of each chunk or ``None``.
    """
    return _join(chunks, tuned, coding, verifies=True)


def _join(
    chunks: Sequence[CodedWords],
    others: Sequence[torch.Tensor],
    coding: WordCoding,
    *,
    verifies: bool,
) -> list[StreamError | None]:
    """Decode chunks to the output of each, or compare them with its tuned words."""
    if not chunks:
        return []
    # The kernels hold only addresses: this list keeps copies alive until the last launch.
    bases = [aligned(chunk.words) for chunk in chunks]
    table = ChunkTable.of(bases, others, [chunk.rows for chunk in chunks])
    contexts = ContextMap.of(table, coding, [chunk.bounds for chunk in chunks], None)
    layout = StreamLayout(chunks, contexts)
    if any(layout.problems):
        return layout.problems
    content = layout.load()
    masks, steps = _DeviceMasks(content, layout), _DeviceSteps(content, layout)
    found = to_host(masks.wrong, masks.unequal, steps.far, steps.lows, steps.wrong)
    layout.check_masks(found[0], found[1])
    layout.check_steps(*found[2:])
    if any(layout.problems):
        return layout.problems
    touched = torch.zeros_like(table.flags)
    differ = zeros(len(chunks), torch.int32, table.device)
    launch(kernels.patch_changes, table.tiles)(
        *(table.table, table.chunk_of_tile, contexts.planes, contexts.firsts),
        *to_device(table.device, layout.mask_bits, layout.firsts),
        *(content, masks.ones_before, steps.steps, touched, differ, table.groups),
        **contexts.constants,
        HAS_ROWS=table.has_rows,
        VERIFIES=verifies,
    )
    if table.has_rows or verifies:
        _check_result(layout, *to_host(touched, differ))
    return layout.problems


def _check_result(
    layout: StreamLayout, touched: NDArray[np.uint8], differ: NDArray[np.int32]
) -> None:
    """Report flagged rows without changes, and words that differ from the tuned ones."""
    rows = [chunk.rows for chunk in layout.chunks]
    flags = layout.contexts.chunks.split_flags(touched.view(np.bool_), rows)
    for i, (own, changed) in enumerate(zip(rows, flags, strict=True)):
        if own is not None and (own.active & ~changed).any():
            layout.add_problem(i, "a flagged row has no change")
        elif differ[i]:
            layout.add_problem(i, "decoded words differ from the encoded ones")


class _DeviceMasks:
    """All masks as bits in the content, and the set bits before each of its words.

    Attributes:
        ones_before: Bits set before each int32 of the content.
        wrong: For each gap-coded mask, whether its gaps overrun the context.
        unequal: For each dense mask, whether its number of set bits is wrong.
    """

    def __init__(self, content: torch.Tensor, layout: StreamLayout) -> None:
        device = content.device
        self.wrong = zeros(len(layout.gaps), torch.int32, device)
        self._set_gaps(content, layout)
        counts = torch.empty_like(content)
        launch(kernels.count_ones, num_programs(content.numel(), sizes.RANKS))(
            content, counts, content.numel(), SIZE=sizes.RANKS
        )
        self.ones_before = torch.cumsum(counts, 0, dtype=torch.int32) - counts
        number = len(layout.dense)
        self.unequal = zeros(number, torch.int32, device)
        launch(kernels.check_dense_masks, num_programs(number, sizes.RANKS))(
            *(content, self.ones_before, *to_device(device, layout.dense), self.unequal, number),
            SIZE=sizes.RANKS,
        )

    def _set_gaps(self, content: torch.Tensor, layout: StreamLayout) -> None:
        if not len(layout.gaps):
            return
        parts = parts_of(layout.gaps[:, 1], sizes.RANKS)
        before = np.zeros(len(parts), np.int32)
        firsts = np.flatnonzero(parts[:, 1] == 0)
        for first, k, escaped in zip(firsts, layout.gaps[:, 1], layout.escaped, strict=True):
            if escaped.size:
                starts = np.arange(0, k, sizes.RANKS)
                before[first : first + starts.size] = np.searchsorted(escaped, starts)
        *tables, begins = to_device(content.device, layout.gaps, parts, before, firsts_of(parts))
        sums = torch.empty(len(parts), dtype=torch.int64, device=content.device)
        constants = {"SIZE": sizes.RANKS, "COLUMNS": sizes.SEGMENT_COLUMNS, "ESCAPE": ESCAPE}
        launch(kernels.sum_gaps, len(parts))(content, *tables, sums, **constants)
        ranks = _before(sums, begins)
        launch(kernels.set_gaps, len(parts))(content, *tables, ranks, self.wrong, **constants)


def _before(values: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
    """Return, for each part, the sum of the values of its owner's earlier parts."""
    before = torch.cumsum(values, 0) - values
    return before - before[firsts]


class _DeviceSteps:
    """The steps of all chunks.

    Attributes:
        steps: The steps.
        far: Number of far steps of each chunk.
        lows: Number of low bits of each chunk.
        wrong: Whether a chunk has an invalid step or exponent.
    """

    def __init__(self, content: torch.Tensor, layout: StreamLayout) -> None:
        device = content.device
        number = len(layout.chunks)
        width = layout.contexts.coding.width
        parts = parts_of(layout.streams[:, 1], sizes.STEPS)
        self.steps = torch.empty(layout.total, dtype=torch.int32, device=device)
        self.wrong = zeros(number, torch.int32, device)
        owners = parts[:, 0].astype(np.int64)
        *tables, owner, firsts = to_device(device, layout.streams, parts, owners, firsts_of(parts))
        constants: dict[str, Any] = {"SIZE": sizes.STEPS, "COLUMNS": sizes.STREAM_COLUMNS}
        constants["num_warps"] = NUM_WARPS

        far = torch.empty(len(parts), dtype=torch.int64, device=device)
        launch(kernels.count_far_steps, len(parts))(content, *tables, far, **constants)
        far_before = _before(far, firsts)
        self.far = zeros(number, torch.int64, device).index_add_(0, owner, far)
        lows = torch.empty_like(far)
        launch(kernels.count_low_bits, len(parts))(
            *(content, *tables, far, far_before, lows, self.wrong), WIDTH=width, **constants
        )
        self.lows = zeros(number, torch.int64, device).index_add_(0, owner, lows)
        exponents = (self.far + 1) // 2 if width <= 16 else self.far
        low_bits = 8 * (tables[0].view(number, -1)[:, 4] + exponents)
        launch(kernels.read_steps, len(parts))(
            *(content, *tables, far_before, _before(lows, firsts), low_bits),
            *(self.steps, self.wrong),
            WIDTH=width,
            **constants,
        )
