"""Which words of some chunks are in which context, marked and counted on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.chunk_table import ChunkTable, coding_constants
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import WIDE, launch, on_device, to_main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding

__all__ = ["ContextMap"]

_COMPILED: Final = {3: 2, 7: 3, 12: 4, 15: 4, 16: 5}
"""Numbers of contexts that kernels are compiled for, and planes of bits that tell them and words
in none apart."""


@dataclass(frozen=True, slots=True)
class ContextMap:
    """The context of every word of some chunks.

    Attributes:
        chunks: The chunks.
        coding: Width and order map.
        number: Contexts that kernels tell apart: as many as any chunk has, or some more.
        planes: The number of each word's context in planes of bits, ``[planes, groups]`` of int32.
        firsts: Of each tile and context, the words of the chunk's tiles before; and behind them
            the changed ones, ``[tiles, 2 * SLOTS]`` of int32.
        counts: Words of each chunk and context, ``[chunks, SLOTS]``.
        changed: Changed words of each, if changes were marked.
    """

    chunks: ChunkTable
    coding: WordCoding
    number: int
    planes: torch.Tensor
    firsts: torch.Tensor
    counts: NDArray[np.int64]
    changed: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        chunks: ChunkTable,
        coding: WordCoding,
        bounds: Sequence[NDArray[np.uint64]],
        bits: torch.Tensor | None,
    ) -> ContextMap:
        """Mark and count.

        Args:
            chunks: The chunks.
            coding: Width and order map.
            bounds: Inclusive upper keys of each chunk's contexts.
            bits: Which words changed, as in a diff, if that is to be counted.
        """
        device = chunks.device
        most = max(len(own) for own in bounds)
        number = next(n for n in _COMPILED if n >= most)
        shape = _COMPILED[number], chunks.groups
        planes = torch.empty(shape, dtype=torch.int32, device=device)
        (padded,) = on_device(device, _padded(bounds, 1 << len(planes)))
        launch(kernels.mark_contexts, chunks.tiles * sizes.PARTS)(
            *(chunks.table, chunks.chunk_of_tile, padded),
            *(chunks.flags, planes.view(torch.uint8), 4 * chunks.groups),
            **coding_constants(coding),
            PLANES=len(planes),
            HAS_ROWS=chunks.has_rows,
            PARTS=sizes.PARTS,
            PART=sizes.PART,
            COLUMNS=sizes.CHUNK_COLUMNS,
            num_warps=WIDE,
        )
        tally = torch.zeros((chunks.tiles, 2 * sizes.SLOTS), dtype=torch.int32, device=device)
        launch(kernels.tally_marks, chunks.tiles)(
            *(chunks.table, chunks.chunk_of_tile, planes, planes if bits is None else bits, tally),
            chunks.groups,
            CONTEXTS=number,
            PLANES=len(planes),
            HAS_HITS=bits is not None,
            GROUPS=sizes.GROUPS,
            COLUMNS=sizes.CHUNK_COLUMNS,
            SLOTS=sizes.SLOTS,
        )
        # Over all chunks: what comes before a chunk's first tile is taken off again. And along rows
        # of memory: down its columns torch adds up tile after tile, on few threads.
        ends = torch.cumsum(tally.t().contiguous(), 1, dtype=torch.int64).t().contiguous()
        before = ends - tally
        begun = before[chunks.tiles_before[:-1]]
        totals = ends[chunks.tiles_before[1:] - 1] - begun
        firsts = before - begun[chunks.chunk_of_tile]
        # Changed words lie by chunk and context: each begins where the ones before end.
        hits = totals[:, sizes.SLOTS :]
        places = (torch.cumsum(hits.reshape(-1), 0).view(hits.shape) - hits)[chunks.chunk_of_tile]
        firsts[:, sizes.SLOTS :] += places
        (found,) = to_main(totals)
        counts, changed = found[:, : sizes.SLOTS], found[:, sizes.SLOTS :]
        firsts = firsts.to(torch.int32)
        return cls(chunks, coding, number, planes, firsts, counts, changed)

    @property
    def constants(self) -> dict[str, Any]:
        """What the kernels are compiled for that read the marks."""
        return {
            **coding_constants(self.coding),
            "CONTEXTS": self.number,
            "PLANES": len(self.planes),
            "GROUP": sizes.GROUP,
            "GROUPS": sizes.GROUPS,
            "COLUMNS": sizes.CHUNK_COLUMNS,
            "SLOTS": sizes.SLOTS,
            "num_warps": WIDE,
        }


def _padded(bounds: Sequence[NDArray[np.uint64]], size: int) -> NDArray[np.int32]:
    """Bounds as the kernels read them, 32 bits each; behind the last one, it again and again."""
    numbers = np.array([len(own) for own in bounds])
    firsts = np.cumsum(numbers) - numbers
    within = np.minimum(np.arange(size), numbers[:, None] - 1)
    padded: NDArray[np.uint64] = np.concatenate(bounds)[firsts[:, None] + within]
    return padded.astype(np.uint32).view(np.int32)
