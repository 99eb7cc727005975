"""The context of each word of several chunks, computed and counted on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.chunk_table import ChunkTable, coding_constants
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import NUM_WARPS, launch, to_device, to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding

__all__ = ["ContextMap"]

_COMPILED: Final = {3: 2, 7: 3, 12: 4, 15: 4, 16: 5}
"""By number of contexts that kernels are compiled for: the bit planes that encode a context number,
or that a word has no context."""


@dataclass(frozen=True, slots=True)
class ContextMap:
    """The context of every word of several chunks.

    Attributes:
        chunks: The chunks.
        coding: Width and order map.
        number: Number of contexts that the kernels distinguish: at least that of every chunk.
        planes: Context numbers of the words as bit planes, int32 ``[planes, groups]``.
        firsts: For each tile and context, the words in the chunk's earlier tiles, then the position
            of the first changed word, int32 ``[tiles, 2 * SLOTS]``.
        counts: Words of each chunk and context, ``[chunks, SLOTS]``.
        changed: Changed words of each chunk and context, if ``bits`` were given.
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
        """Find and count the contexts.

        Args:
            chunks: The chunks.
            coding: Width and order map.
            bounds: Inclusive upper keys of each chunk's contexts.
            bits: Bits of the changed words, as in a diff, to count changed words, too.
        """
        device = chunks.device
        most = max(len(own) for own in bounds)
        number = next(n for n in _COMPILED if n >= most)
        shape = _COMPILED[number], chunks.groups
        planes = torch.empty(shape, dtype=torch.int32, device=device)
        (padded,) = to_device(device, _padded(bounds, 1 << len(planes)))
        launch(kernels.map_contexts, chunks.tiles * sizes.PARTS)(
            *(chunks.table, chunks.chunk_of_tile, padded),
            *(chunks.flags, planes.view(torch.uint8), 4 * chunks.groups),
            **coding_constants(coding),
            PLANES=len(planes),
            HAS_ROWS=chunks.has_rows,
            PARTS=sizes.PARTS,
            PART=sizes.PART,
            COLUMNS=sizes.CHUNK_COLUMNS,
            num_warps=NUM_WARPS,
        )
        counts = torch.zeros((chunks.tiles, 2 * sizes.SLOTS), dtype=torch.int32, device=device)
        launch(kernels.count_context_words, chunks.tiles)(
            *(chunks.table, chunks.chunk_of_tile, planes, planes if bits is None else bits, counts),
            chunks.groups,
            CONTEXTS=number,
            PLANES=len(planes),
            HAS_HITS=bits is not None,
            GROUPS=sizes.GROUPS,
            COLUMNS=sizes.CHUNK_COLUMNS,
            SLOTS=sizes.SLOTS,
        )
        # A prefix sum over the tiles of all chunks, minus that of each chunk's first tile.
        # Transposed, because torch's cumsum along columns uses few threads.
        ends = torch.cumsum(counts.t().contiguous(), 1, dtype=torch.int64).t().contiguous()
        before = ends - counts
        before_chunk = before[chunks.tiles_before[:-1]]
        totals = ends[chunks.tiles_before[1:] - 1] - before_chunk
        firsts = before - before_chunk[chunks.chunk_of_tile]
        # Changed words are ordered by chunk, then by context.
        changed = totals[:, sizes.SLOTS :]
        starts = torch.cumsum(changed.reshape(-1), 0).view(changed.shape) - changed
        firsts[:, sizes.SLOTS :] += starts[chunks.chunk_of_tile]
        (found,) = to_host(totals)
        firsts = firsts.to(torch.int32)
        by_context, changed_by_context = found[:, : sizes.SLOTS], found[:, sizes.SLOTS :]
        return cls(chunks, coding, number, planes, firsts, by_context, changed_by_context)

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time constants of the kernels that read the map."""
        return {
            **coding_constants(self.coding),
            "CONTEXTS": self.number,
            "PLANES": len(self.planes),
            "GROUP": sizes.GROUP,
            "GROUPS": sizes.GROUPS,
            "COLUMNS": sizes.CHUNK_COLUMNS,
            "SLOTS": sizes.SLOTS,
            "num_warps": NUM_WARPS,
        }


def _padded(bounds: Sequence[NDArray[np.uint64]], size: int) -> NDArray[np.int32]:
    """Return the bounds of each chunk as int32, padded with the last one."""
    numbers = np.array([len(own) for own in bounds])
    firsts = np.cumsum(numbers) - numbers
    within = np.minimum(np.arange(size), numbers[:, None] - 1)
    padded: NDArray[np.uint64] = np.concatenate(bounds)[firsts[:, None] + within]
    return padded.astype(np.uint32).view(np.int32)
