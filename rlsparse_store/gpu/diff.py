"""What changed in words on a device, before it is decided how to store it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.chunk_table import ChunkTable, aligned, coding_constants
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import WIDE, launch, on_device, to_main, zeros
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    TILE,
    Changes,
    ChunkWords,
    Histogram,
    Rows,
    rows_touched,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding

__all__ = ["Diff", "DiffWords", "diff", "diff_chunks", "flag_rows", "histograms", "table_of"]

# A histogram takes every so manieth tile of so many words: a part is such a tile.
assert TILE == sizes.PART  # noqa: S101 - two numbers of ours

_CUT: Final = {"PARTS": sizes.PARTS, "PART": sizes.PART, "COLUMNS": sizes.CHUNK_COLUMNS}


@dataclass(frozen=True, slots=True)
class DiffWords(ChunkWords):
    """A chunk whose changed words are marked.

    Attributes:
        bits: One bit per word of all that was compared with it, as int32.
        first_group: Where its own begin.
    """

    bits: torch.Tensor
    first_group: int


@dataclass(frozen=True, slots=True)
class Diff:
    """What changed in some runs of words.

    Attributes:
        runs: Base and tuned words of each run.
        bits: One bit per word, set where it changed: an int32 for each 32 words, the runs one
            behind the other, each from a tile on.
        first_tiles: The first tile of each run.
        numbers: Changed words of each part of a tile.
        top_keys: The largest key of a base word that changed, 0 if none did, of each part.
    """

    runs: list[tuple[torch.Tensor, torch.Tensor]]
    bits: torch.Tensor
    first_tiles: NDArray[np.int64]
    numbers: NDArray[np.int64]
    top_keys: NDArray[np.int64]

    def blocks(self, run: int, block: int) -> list[Changes]:
        """What changed in each block of a run.

        Args:
            run: The run.
            block: Words of a block, a multiple of a part's.
        """
        words = self.runs[run][0].numel()
        # The last block is shorter, and parts behind the run's words have no changes.
        own = slice(*(self.first_tiles[run : run + 2] * sizes.PARTS).tolist())
        starts = np.arange(0, -(-words // sizes.PART), block // sizes.PART)
        numbers = np.add.reduceat(self.numbers[own], starts)
        top_keys = np.maximum.reduceat(self.top_keys[own], starts)
        return [Changes(*both) for both in zip(numbers.tolist(), top_keys.tolist(), strict=True)]

    def chunk(
        self, run: int, part: slice, row: tuple[int, int] | None, changes: Changes
    ) -> DiffWords:
        """A chunk of a run.

        Args:
            run: The run.
            part: Its words, from the first word of a tile on.
            row: Words of a row, and the place of the chunk's first word in its row.
            changes: What changed in it.
        """
        base, tuned = self.runs[run]
        group = int(self.first_tiles[run]) * sizes.GROUPS + part.start // sizes.GROUP
        return DiffWords(base[part], tuned[part], row, changes, self.bits, group)


def diff(runs: Sequence[tuple[torch.Tensor, torch.Tensor]], coding: WordCoding) -> Diff:
    """Compare runs of words, all of them in one pass.

    Args:
        runs: Base and tuned words of each run, as many of both, on one device.
        coding: Width and order map.
    """
    placed = [(aligned(base), aligned(tuned)) for base, tuned in runs]
    table = ChunkTable.of([base for base, _ in placed], [tuned for _, tuned in placed])
    bits = torch.empty(table.groups, dtype=torch.int32, device=table.device)
    found = torch.empty((2, table.tiles * sizes.PARTS), dtype=torch.int32, device=table.device)
    launch(kernels.compare_words, table.tiles * sizes.PARTS)(
        *(table.table, table.chunk_of_tile, bits.view(torch.uint8), found[0], found[1]),
        **coding_constants(coding),
        **_CUT,
    )
    (both,) = to_main(found)
    top_keys = both[1].view(np.uint32).astype(np.int64)
    return Diff(placed, bits, table.first_tiles, both[0].astype(np.int64), top_keys)


def diff_chunks(chunks: Sequence[ChunkWords], coding: WordCoding) -> list[DiffWords]:
    """Chunks whose changed words are marked, together."""
    found = [chunk for chunk in chunks if isinstance(chunk, DiffWords)]
    if len(found) == len(chunks) and all(chunk.bits is found[0].bits for chunk in found):
        return found
    marked = diff([(chunk.base, chunk.tuned) for chunk in chunks], coding)
    return [
        marked.chunk(i, slice(0, len(chunk.base)), chunk.row, chunk.changes)
        for i, chunk in enumerate(chunks)
    ]


def table_of(chunks: Sequence[DiffWords], rows: Sequence[Rows | None]) -> ChunkTable:
    """The table of chunks that were compared together."""
    return ChunkTable.of(
        [chunk.base for chunk in chunks],
        [chunk.tuned for chunk in chunks],
        rows,
        [chunk.first_group for chunk in chunks],
    )


def flag_rows(chunks: Sequence[DiffWords]) -> list[Rows]:
    """The rows of each chunk that hold a changed word. Every chunk has rows."""
    rows: list[Rows] = []
    for chunk in chunks:
        assert chunk.row is not None  # noqa: S101 - every chunk has rows
        number = rows_touched(len(chunk.base), *chunk.row)
        rows.append(Rows(np.zeros(number, np.bool_), *chunk.row))
    if not rows:
        return []
    table = table_of(chunks, rows)
    launch(kernels.flag_rows, table.tiles)(
        *(table.table, table.chunk_of_tile, chunks[0].bits, table.flags),
        GROUP=sizes.GROUP,
        GROUPS=sizes.GROUPS,
        COLUMNS=sizes.CHUNK_COLUMNS,
    )
    (flags,) = to_main(table.flags)
    found = table.cut_flags(flags.view(np.bool_), rows)
    return [
        Rows(active, before.length, before.offset)
        for active, before in zip(found, rows, strict=True)
    ]


@cache
def _ends(coding: WordCoding, ends: bytes, device: torch.device) -> torch.Tensor:
    """The bin of each key, or of wide words, the largest key of each bin."""
    told = np.frombuffer(ends, np.uint64).astype(np.uint32)
    if coding.width <= 16:
        keys = np.arange(1 << coding.key_bits, dtype=np.uint32)
        told = np.searchsorted(told, keys).astype(np.uint32)
    # Waited for: the threads that share it work on streams of their own.
    return torch.from_numpy(told.view(np.int32)).to(device)


def histograms(
    chunks: Sequence[DiffWords],
    coding: WordCoding,
    bins: NDArray[np.uint64],
    rows: Sequence[Rows | None],
    every: Sequence[int],
) -> list[Histogram]:
    """Words and steps of each chunk by bin of the base word's key, as a backend counts them."""
    if not chunks:
        return []
    table = table_of(chunks, rows)
    number = len(chunks)
    parts = -(-table.words // sizes.PART)
    samples = [np.arange(0, n, e) for n, e in zip(parts.tolist(), every, strict=True)]
    owners = np.repeat(np.arange(number), [len(s) for s in samples])
    pairs = np.stack([owners, np.concatenate(samples)], 1).astype(np.int32)
    cells = 1 + MAGNITUDE_CLASSES
    counts = zeros(number * bins.size * cells, torch.int32, table.device)
    words, moved = counts[: number * bins.size], counts[number * bins.size :]
    launch(kernels.count_bins, len(pairs))(
        *(table.table, *on_device(table.device, pairs), table.flags),
        _ends(coding, bins.tobytes(), table.device),
        *(words, moved, bins.size),
        **coding_constants(coding),
        HAS_ROWS=table.has_rows,
        BINS=1 << int(bins.size).bit_length(),
        CLASSES=MAGNITUDE_CLASSES,
        PART=sizes.PART,
        COLUMNS=sizes.CHUNK_COLUMNS,
        num_warps=2 * WIDE,
    )
    (found,) = to_main(counts)
    scaled = np.array(every, np.int64)[:, None]
    by_bin = found[: number * bins.size].reshape(number, -1) * scaled
    by_step = found[number * bins.size :].reshape(number, -1) * scaled
    shape = number, bins.size, MAGNITUDE_CLASSES
    return [Histogram(*both) for both in zip(by_bin, by_step.reshape(shape), strict=True)]
