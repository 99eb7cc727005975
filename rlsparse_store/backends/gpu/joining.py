"""Streams of chunks read back on a device: changed words written there, or proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.backends.gpu import kernels
from rlsparse_store.backends.gpu.kernels import sizes
from rlsparse_store.backends.gpu.launching import (
    WIDE,
    launch,
    on_device,
    parts_of,
    programs_for,
    to_main,
    zeros,
)
from rlsparse_store.backends.gpu.marks import Marks
from rlsparse_store.backends.gpu.tables import ChunkTable, aligned
from rlsparse_store.backends.numpy.bits import Cursor
from rlsparse_store.backends.numpy.masks import DENSE, ESCAPE, low_width
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.backends.interface import CodedWords
    from rlsparse_store.dtypes import WordCoding

__all__ = ["join_chunks"]

_ALL: Final = -1
_NONE: Final = -2


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
    table = ChunkTable.of(
        bases,
        others,
        [chunk.rows for chunk in chunks],
    )
    marks = Marks.of(table, coding, [chunk.bounds for chunk in chunks], None)
    reading = _Reading(chunks, marks)
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
        *(on_device(reading.mask_bits, table.device), on_device(reading.firsts, table.device)),
        *(content, masks.ones_before, steps.steps, touched, differ, table.groups),
        **marks.constants,
        HAS_ROWS=table.has_rows,
        PROVES=proves,
    )
    if table.has_rows or proves:
        _judge_result(reading, *to_main(touched, differ))
    return reading.problems


def _judge_result(reading: _Reading, touched: NDArray[np.uint8], differ: NDArray[np.int32]) -> None:
    """Look at which rows have changes, and at which words are not what they should be."""
    rows = [chunk.rows for chunk in reading.chunks]
    flags = reading.marks.chunks.cut_flags(touched.view(np.bool_), rows)
    for i, (own, changed) in enumerate(zip(rows, flags, strict=True)):
        if own is not None and (own.active & ~changed).any():
            reading.blame(i, "a row without changes is flagged")
        elif differ[i]:
            reading.blame(i, "words are not what was coded")


@dataclass(frozen=True, slots=True)
class _Gaps:
    """A mask that is coded as gaps.

    Attributes:
        chunk: Its chunk.
        columns: What ``sizes.SEGMENT_COLUMNS`` lists of it.
        escaped: Where its escaped gaps are, among its gaps.
    """

    chunk: int
    columns: tuple[int, ...]
    escaped: NDArray[np.int64]


class _Reading:
    """Where the streams of chunks lie, once their contexts are counted.

    Args:
        chunks: The chunks.
        marks: Their contexts.

    Attributes:
        problems: What is wrong with each chunk, as far as it is known.
        mask_bits: The bit at which each context's mask begins, ``[chunks, SLOTS]``.
        firsts: Place of the first step of each.
        streams: What ``sizes.STREAM_COLUMNS`` lists of each chunk.
        gaps: The masks that are coded as gaps.
        dense: Of each mask that is stored as bits: chunk, first bit, words, changed words.
    """

    def __init__(self, chunks: Sequence[CodedWords], marks: Marks) -> None:
        self.chunks = chunks
        self.marks = marks
        self.problems: list[StreamError | None] = [None] * len(chunks)
        self.mask_bits = np.full((len(chunks), sizes.SLOTS), _NONE, np.int64)
        self.streams = np.zeros((len(chunks), sizes.STREAM_COLUMNS), np.int64)
        self.gaps: list[_Gaps] = []
        self.dense: list[tuple[int, int, int, int]] = []
        changed = np.zeros((len(chunks), sizes.SLOTS), np.int64)
        lengths = np.array([len(chunk.content) for chunk in chunks])
        self._starts = np.cumsum(lengths) - lengths
        # Behind the contents is room for the masks that gaps make.
        self._bits = 32 * -(-int(lengths.sum()) // 4)
        for i, chunk in enumerate(chunks):
            changed[i, : len(chunk.changed)] = chunk.changed
            try:
                self._read(i, chunk)
            except StreamError as error:
                # Without what it passed through, which holds memory of the device.
                self.problems[i] = error.with_traceback(None)
        firsts = (np.cumsum(changed) - changed.ravel()).reshape(changed.shape)
        self.firsts = firsts.astype(np.int32)
        self.streams[:, 0] = firsts[:, 0]
        self.total = int(changed.sum())

    def blame(self, chunk: int, problem: str) -> None:
        """Note what is wrong with a chunk, unless something is already."""
        self.problems[chunk] = self.problems[chunk] or StreamError(problem)

    def _read(self, number: int, chunk: CodedWords) -> None:
        """Find the streams of a chunk, as far as main memory can tell."""
        cursor, start = Cursor(chunk.content), int(self._starts[number])
        counts = self.marks.counts[number].tolist()
        for slot, (n, k) in enumerate(zip(counts, chunk.changed, strict=False)):
            if k > n:
                msg = f"a context of {n} words is said to have {k} changed ones"
                raise StreamError(msg)
            if k == n and k:
                self.mask_bits[number, slot] = _ALL
            elif k * DENSE >= n and k:
                self.mask_bits[number, slot] = 8 * (start + cursor.place)
                self.dense.append((number, 8 * (start + cursor.place), n, k))
                cursor.take_packed(n)
            elif k:
                self.mask_bits[number, slot] = self._bits
                self._read_gaps(number, cursor, start, n, k)
                self._bits += 32 * -(-n // 32)
        total = sum(chunk.changed)
        self.streams[number, 1:3] = total, start + cursor.place
        cursor.take_packed(total)
        self.streams[number, 3] = start + cursor.place
        cursor.take_packed(2 * total)
        self.streams[number, 4:] = start + cursor.place, start + len(chunk.content)

    def _read_gaps(self, number: int, cursor: Cursor, start: int, n: int, k: int) -> None:
        width = low_width(n, k)
        low = start + cursor.place
        cursor.take_packed(k * width)
        high = start + cursor.place
        escaped = np.flatnonzero(cursor.take(k) == ESCAPE)
        columns = (0, k, width, 8 * low, high, start + cursor.place, n, self._bits)
        cursor.take(4 * escaped.size)
        self.gaps.append(_Gaps(number, columns, escaped))

    def load(self) -> torch.Tensor:
        """The contents on the device, and zeros for the masks that gaps make, as int32."""
        device = self.marks.chunks.device
        words = -(-sum(len(chunk.content) for chunk in self.chunks) // 4)
        host = torch.zeros(words, dtype=torch.int32, pin_memory=device.type == "cuda")
        data = host.numpy().view(np.uint8)
        for start, chunk in zip(self._starts.tolist(), self.chunks, strict=True):
            data[start : start + len(chunk.content)] = np.frombuffer(chunk.content, np.uint8)
        # Two words more than there are bits: what is read at any bit reads two.
        content = zeros(self._bits // 32 + 2, torch.int32, device)
        content[:words].copy_(host, non_blocking=True)
        return content

    def judge_masks(self, wrong: NDArray[np.int32], unequal: NDArray[np.int32]) -> None:
        """Blame the chunks whose masks the device found wrong."""
        for place in np.flatnonzero(wrong).tolist():
            self.blame(self.gaps[place].chunk, "the gaps overrun their context")
        for place in np.flatnonzero(unequal).tolist():
            number, _, _, k = self.dense[place]
            self.blame(number, f"a mask does not mark {k} words")

    def judge_steps(
        self, far: NDArray[np.int64], lows: NDArray[np.int64], wrong: NDArray[np.int32]
    ) -> None:
        """Blame the chunks whose steps the device found wrong, or that do not end where they do."""
        width = self.marks.coding.width
        for i, chunk in enumerate(self.chunks):
            if wrong[i]:
                self.blame(i, f"a step does not fit words of {width} bits")
            cursor = Cursor(chunk.content[int(self.streams[i, 4] - self._starts[i]) :])
            try:
                cursor.take_packed(int(far[i]) * (4 if width <= 16 else 8))
                cursor.take_packed(int(lows[i]))
                cursor.finish()
            except StreamError as error:
                self.problems[i] = self.problems[i] or error.with_traceback(None)


class _DeviceMasks:
    """All masks as bits in the content, and how many bits are set before each word of it.

    Attributes:
        ones_before: Bits set before each int32 of the content.
        wrong: Of each mask of gaps, whether one leaves its context.
        unequal: Of each mask of bits, whether it does not mark as many words as it should.
    """

    def __init__(self, content: torch.Tensor, reading: _Reading) -> None:
        device = content.device
        self.wrong = zeros(len(reading.gaps), torch.int32, device)
        if reading.gaps:
            self._set_gaps(content, reading.gaps)
        counts = torch.empty_like(content)
        launch(kernels.count_ones, programs_for(content.numel(), sizes.RANKS))(
            content, counts, content.numel(), SIZE=sizes.RANKS
        )
        self.ones_before = torch.cumsum(counts, 0, dtype=torch.int32) - counts
        dense = np.array(reading.dense, np.int64).reshape(-1, 4)
        self.unequal = zeros(len(dense), torch.int32, device)
        launch(kernels.compare_marks, programs_for(len(dense), sizes.RANKS))(
            *(content, self.ones_before, on_device(dense, device), self.unequal, len(dense)),
            SIZE=sizes.RANKS,
        )

    def _set_gaps(self, content: torch.Tensor, gaps: list[_Gaps]) -> None:
        device = content.device
        table = np.array([own.columns for own in gaps], np.int64)
        parts = parts_of(table[:, 1], sizes.RANKS)
        escapes = [
            np.searchsorted(own.escaped, np.arange(0, own.columns[1], sizes.RANKS)) for own in gaps
        ]
        told = on_device(table, device), on_device(parts, device)
        before = on_device(np.concatenate(escapes).astype(np.int32), device)
        sums = torch.empty(len(parts), dtype=torch.int64, device=device)
        constants = {"SIZE": sizes.RANKS, "COLUMNS": sizes.SEGMENT_COLUMNS, "ESCAPE": ESCAPE}
        launch(kernels.sum_gaps, len(parts))(content, *told, before, sums, **constants)
        ranks = _before(sums, parts)
        launch(kernels.set_gaps, len(parts))(content, *told, before, ranks, self.wrong, **constants)


def _before(values: torch.Tensor, parts: NDArray[np.int32]) -> torch.Tensor:
    """The sum of the values of an owner's parts before each; parts lie owner by owner."""
    begun = torch.cumsum(values, 0) - values
    first = np.arange(len(parts)) - parts[:, 1]
    return begun - begun[on_device(first, values.device)]


class _DeviceSteps:
    """The steps of all chunks.

    Attributes:
        steps: The steps.
        far: Far steps of each chunk.
        lows: Bits that their low bits take.
        wrong: Whether a step or an exponent is none.
    """

    def __init__(self, content: torch.Tensor, reading: _Reading) -> None:
        device = content.device
        number = len(reading.chunks)
        width = reading.marks.coding.width
        parts = parts_of(reading.streams[:, 1], sizes.STEPS)
        self.steps = torch.empty(reading.total, dtype=torch.int32, device=device)
        self.wrong = zeros(number, torch.int32, device)
        told = on_device(reading.streams, device), on_device(parts, device)
        owners = on_device(parts[:, 0].astype(np.int64), device)
        constants: dict[str, Any] = {"SIZE": sizes.STEPS, "COLUMNS": sizes.STREAM_COLUMNS}
        constants["num_warps"] = WIDE

        far = torch.empty(len(parts), dtype=torch.int64, device=device)
        launch(kernels.tally_far, len(parts))(content, *told, far, **constants)
        far_before = _before(far, parts)
        self.far = zeros(number, torch.int64, device).index_add_(0, owners, far)
        lows = torch.empty_like(far)
        launch(kernels.tally_lows, len(parts))(
            *(content, *told, far, far_before, lows, self.wrong), WIDTH=width, **constants
        )
        self.lows = zeros(number, torch.int64, device).index_add_(0, owners, lows)
        exponents = (self.far + 1) // 2 if width <= 16 else self.far
        low_bits = 8 * (told[0][:, 4] + exponents)
        launch(kernels.read_steps, len(parts))(
            *(content, *told, far_before, _before(lows, parts), low_bits),
            *(self.steps, self.wrong),
            WIDTH=width,
            **constants,
        )
