"""The chunk descriptor table that is passed to the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.kernels.interface import Rows

__all__ = ["ALIGNMENT", "ChunkTable", "aligned", "coding_constants"]

ALIGNMENT: Final = 16
"""Alignment of a chunk's first word in bytes, which allows vector loads."""


def aligned(words: torch.Tensor) -> torch.Tensor:
    """Return the words, copied if their address is not aligned."""
    return words.clone() if words.data_ptr() % ALIGNMENT else words


def coding_constants(coding: WordCoding) -> dict[str, int]:
    """Return the compile-time constants of a word coding."""
    return {"WIDTH": coding.width, "ORDER": int(coding.order)}


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Chunks on one device, cut into tiles.

    Attributes:
        table: The columns of ``sizes.CHUNK_COLUMNS`` for each chunk, int64.
        chunk_of_tile: Chunk of each tile, int32.
        tiles_before: First tile of each chunk, then the number of all tiles, int64.
        first_tiles: Copy of ``tiles_before`` in main memory.
        flags: Row flags of the chunks that have them, uint8.
        has_rows: Whether any chunk has row flags.
        words: Number of words of each chunk.
    """

    table: torch.Tensor
    chunk_of_tile: torch.Tensor
    tiles_before: torch.Tensor
    first_tiles: NDArray[np.int64]
    flags: torch.Tensor
    has_rows: bool
    words: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        base: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        rows: Sequence[Rows | None] | None = None,
        first_groups: Sequence[int] | None = None,
    ) -> ChunkTable:
        """Build the table.

        Args:
            base: Base words of each chunk.
            others: Tuned words of each chunk, as input or as output.
            rows: Active rows of each chunk; ``None`` for a chunk without row flags.
            first_groups: First group of each chunk in the bits of changed words.
        """
        device = base[0].device
        number = len(base)
        words = np.array([chunk.numel() for chunk in base], np.int64)
        tiles = np.maximum(-(-words // sizes.TILE), 1)
        first_tiles = np.concatenate([[0], np.cumsum(tiles)])
        table = np.zeros((number, sizes.CHUNK_COLUMNS), np.int64)
        table[:, 0] = [chunk.data_ptr() for chunk in base]
        table[:, 1] = [chunk.data_ptr() for chunk in others]
        table[:, 2] = words
        table[:, 3] = first_tiles[:-1]
        table[:, 4], table[:, 6] = 1, -1
        if first_groups is not None:
            table[:, 7] = first_groups
        flags: list[NDArray[np.bool_]] = []
        first_flag = 0
        for i, active in enumerate(rows or []):
            if active is not None:
                table[i, 4:7] = active.length, active.offset, first_flag
                first_flag += active.active.size
                flags.append(active.active)
        all_flags = np.concatenate([*flags, np.zeros(1, np.bool_)]).astype(np.uint8)
        chunk_of_tile = np.repeat(np.arange(number, dtype=np.int32), tiles)
        copies = to_device(device, table, chunk_of_tile, first_tiles, all_flags)
        return cls(copies[0], copies[1], copies[2], first_tiles, copies[3], bool(flags), words)

    @property
    def device(self) -> torch.device:
        """Device of the chunks."""
        return self.table.device

    @property
    def tiles(self) -> int:
        """Number of tiles of all chunks."""
        return int(self.first_tiles[-1])

    @property
    def groups(self) -> int:
        """Number of groups of all tiles."""
        return self.tiles * sizes.GROUPS

    def split_flags(self, flags: NDArray[Any], rows: Sequence[Rows | None]) -> list[NDArray[Any]]:
        """Split row flags by chunk; a chunk without row flags gets an empty array."""
        ends = list(accumulate(0 if own is None else own.active.size for own in rows))
        return [flags[start:end] for start, end in zip([0, *ends], ends, strict=False)]
