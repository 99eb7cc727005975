"""Comparing base and tuned words on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.chunk_table import ChunkTable, aligned, coding_constants
from rlsparse_store.gpu.chunk_words import ChunkWords
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import NUM_WARPS, launch, to_device, to_host, zeros
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    TILE,
    Changes,
    Histogram,
    Rows,
    row_count,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding

__all__ = ["Diff", "diff", "flag_rows", "histograms", "table_of"]

# A histogram samples tiles of TILE words, which are the kernels' parts.
assert TILE == sizes.PART  # noqa: S101 - two constants of this package

_CUT: Final = {"PARTS": sizes.PARTS, "PART": sizes.PART, "COLUMNS": sizes.CHUNK_COLUMNS}


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences of several pairs of base and tuned words.

    Attributes:
        pairs: Base and tuned words of each pair.
        bits: One bit per word, set if it changed: an int32 per 32 words. Each pair starts at a
            tile.
        first_tiles: First tile of each pair.
        numbers: Changed words of each part of a tile.
        top_keys: Largest key of a changed base word of each part; 0 without changes.
    """

    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    bits: torch.Tensor
    first_tiles: NDArray[np.int64]
    numbers: NDArray[np.int64]
    top_keys: NDArray[np.int64]

    def blocks(self, pair: int, block: int) -> list[Changes]:
        """Return the changes of each block of a pair.

        Args:
            pair: Number of the pair.
            block: Words of a block, a multiple of ``sizes.PART``.
        """
        words = self.pairs[pair][0].numel()
        # The last block may be shorter; parts after the pair's last word have no changes.
        own = slice(*(self.first_tiles[pair : pair + 2] * sizes.PARTS).tolist())
        starts = np.arange(0, -(-words // sizes.PART), block // sizes.PART)
        numbers = np.add.reduceat(self.numbers[own], starts)
        top_keys = np.maximum.reduceat(self.top_keys[own], starts)
        return [Changes(*both) for both in zip(numbers.tolist(), top_keys.tolist(), strict=True)]

    def chunk(
        self, pair: int, part: slice, row: tuple[int, int] | None, changes: Changes
    ) -> ChunkWords:
        """Return a chunk of a pair.

        Args:
            pair: Number of the pair.
            part: Words of the chunk; it starts at a tile.
            row: Words of a row, and the position of the chunk's first word in its row.
            changes: Changes of the chunk.
        """
        base, tuned = self.pairs[pair]
        group = int(self.first_tiles[pair]) * sizes.GROUPS + part.start // sizes.GROUP
        return ChunkWords(base[part], tuned[part], row, changes, self.bits, group)


def diff(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], coding: WordCoding) -> Diff:
    """Compare pairs of words in one pass.

    Args:
        pairs: Base and tuned words of the same number, all on one device.
        coding: Width and order map.
    """
    words = [(aligned(base), aligned(tuned)) for base, tuned in pairs]
    table = ChunkTable.of([base for base, _ in words], [tuned for _, tuned in words])
    bits = torch.empty(table.groups, dtype=torch.int32, device=table.device)
    found = torch.empty((2, table.tiles * sizes.PARTS), dtype=torch.int32, device=table.device)
    launch(kernels.compare_words, table.tiles * sizes.PARTS)(
        *(table.table, table.chunk_of_tile, bits.view(torch.uint8), found[0], found[1]),
        **coding_constants(coding),
        **_CUT,
    )
    (both,) = to_host(found)
    top_keys = both[1].view(np.uint32).astype(np.int64)
    return Diff(words, bits, table.first_tiles, both[0].astype(np.int64), top_keys)


def table_of(chunks: Sequence[ChunkWords], rows: Sequence[Rows | None]) -> ChunkTable:
    """Return the table of chunks of one diff."""
    return ChunkTable.of(
        [chunk.base for chunk in chunks],
        [chunk.tuned for chunk in chunks],
        rows,
        [chunk.first_group for chunk in chunks],
    )


def flag_rows(chunks: Sequence[ChunkWords]) -> list[Rows]:
    """Find the rows of each chunk that hold a changed word. Every chunk has rows."""
    rows: list[Rows] = []
    for chunk in chunks:
        assert chunk.row is not None  # noqa: S101 - see the docstring
        number = row_count(len(chunk.base), *chunk.row)
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
    (flags,) = to_host(table.flags)
    found = table.split_flags(flags.view(np.bool_), rows)
    return [
        Rows(active, empty.length, empty.offset) for active, empty in zip(found, rows, strict=True)
    ]


@cache
def _bin_table(coding: WordCoding, ends: bytes, device: torch.device) -> torch.Tensor:
    """Return the bin of each key; for 32-bit words, the largest key of each bin."""
    table = np.frombuffer(ends, np.uint64).astype(np.uint32)
    if coding.width <= 16:
        keys = np.arange(1 << coding.key_bits, dtype=np.uint32)
        table = np.searchsorted(table, keys).astype(np.uint32)
    # A blocking copy: threads share the table and work on their own streams.
    return torch.from_numpy(table.view(np.int32)).to(device)


def histograms(
    chunks: Sequence[ChunkWords],
    coding: WordCoding,
    bins: NDArray[np.uint64],
    rows: Sequence[Rows | None],
    strides: Sequence[int],
) -> list[Histogram]:
    """Count words and steps of each chunk by bin of the base word's key."""
    if not chunks:
        return []
    table = table_of(chunks, rows)
    number = len(chunks)
    parts = -(-table.words // sizes.PART)
    samples = [np.arange(0, n, e) for n, e in zip(parts.tolist(), strides, strict=True)]
    owners = np.repeat(np.arange(number), [len(s) for s in samples])
    pairs = np.stack([owners, np.concatenate(samples)], 1).astype(np.int32)
    cells = 1 + MAGNITUDE_CLASSES
    counts = zeros(number * bins.size * cells, torch.int32, table.device)
    words, moved = counts[: number * bins.size], counts[number * bins.size :]
    launch(kernels.count_bins, len(pairs))(
        *(table.table, *to_device(table.device, pairs), table.flags),
        _bin_table(coding, bins.tobytes(), table.device),
        *(words, moved, bins.size),
        **coding_constants(coding),
        HAS_ROWS=table.has_rows,
        BINS=1 << int(bins.size).bit_length(),
        CLASSES=MAGNITUDE_CLASSES,
        PART=sizes.PART,
        COLUMNS=sizes.CHUNK_COLUMNS,
        num_warps=2 * NUM_WARPS,
    )
    (found,) = to_host(counts)
    scaled = np.array(strides, np.int64)[:, None]
    by_bin = found[: number * bins.size].reshape(number, -1) * scaled
    by_step = found[number * bins.size :].reshape(number, -1) * scaled
    shape = number, bins.size, MAGNITUDE_CLASSES
    return [Histogram(*both) for both in zip(by_bin, by_step.reshape(shape), strict=True)]
