"""Several chunks as the kernels are told of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.kernels.interface import Rows

__all__ = ["ALIGNMENT", "ChunkTable", "aligned", "coding_constants"]

ALIGNMENT: Final = 16
"""What divides the address of a chunk's first word, so that kernels load several at a time."""


def aligned(words: torch.Tensor) -> torch.Tensor:
    """Words where kernels take them: a copy, if they lie at an odd address."""
    return words.clone() if words.data_ptr() % ALIGNMENT else words


def coding_constants(coding: WordCoding) -> dict[str, int]:
    """What kernels are compiled for of a word coding."""
    return {"WIDTH": coding.width, "ORDER": int(coding.order)}


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Chunks of one device, cut into tiles.

    Attributes:
        table: What ``sizes.CHUNK_COLUMNS`` lists of each chunk, int64.
        chunk_of_tile: The chunk of each tile, int32.
        tiles_before: The first tile of each chunk, and the number of all, int64.
        first_tiles: The same in main memory.
        flags: Flags of the rows of those chunks whose rows count, uint8.
        has_rows: Whether there are such chunks.
        words: Words of each chunk.
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
        """The table of some chunks.

        Args:
            base: Their base words.
            others: Their tuned words, or where those go.
            rows: The active rows of each whose rows count.
            first_groups: Where each begins among the bits of changed words.
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
        place = 0
        for i, active in enumerate(rows or []):
            if active is not None:
                table[i, 4:7] = active.length, active.offset, place
                place += active.active.size
                flags.append(active.active)
        joined = np.concatenate([*flags, np.zeros(1, np.bool_)]).astype(np.uint8)
        chunk_of_tile = np.repeat(np.arange(number, dtype=np.int32), tiles)
        told = on_device(device, table, chunk_of_tile, first_tiles, joined)
        return cls(told[0], told[1], told[2], first_tiles, told[3], bool(flags), words)

    @property
    def device(self) -> torch.device:
        """Where the chunks lie."""
        return self.table.device

    @property
    def tiles(self) -> int:
        """Tiles of all chunks."""
        return int(self.first_tiles[-1])

    @property
    def groups(self) -> int:
        """Groups of all tiles."""
        return self.tiles * sizes.GROUPS

    def cut_flags(self, flags: NDArray[Any], rows: Sequence[Rows | None]) -> list[NDArray[Any]]:
        """Flags of rows, chunk by chunk; of a chunk whose rows do not count, none."""
        ends = list(accumulate(0 if own is None else own.active.size for own in rows))
        return [flags[start:end] for start, end in zip([0, *ends], ends, strict=False)]
