"""Which words are in which context, tile by tile, and what is written by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from rlsparse_store.backends.gpu import kernels
from rlsparse_store.backends.gpu.packing import grid_of, launch
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.backends.gpu.masks import DeviceMasks
    from rlsparse_store.backends.interface import Rows
    from rlsparse_store.dtypes import WordCoding

__all__ = ["ContextTable"]


class ContextTable:
    """How many words of each context each tile of a chunk holds.

    Args:
        base: The base's words.
        coding: Width and order map.
        bounds: Inclusive upper keys of the contexts.
        rows: The active rows, if only those count.
        tuned: The tuned words, if changed ones are to be counted.

    Attributes:
        counts: Words of each context.
        changed: Changed words of each context; none where no tuned words were given.
    """

    def __init__(
        self,
        base: torch.Tensor,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        tuned: torch.Tensor | None = None,
    ) -> None:
        self._base = base
        self._rows = rows
        self._contexts = bounds.size
        self._tiles = grid_of(base.numel())
        # Unsigned bounds in signed words of 32 bits, as the kernels read them.
        top = np.minimum(bounds, np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
        self._bounds = torch.from_numpy(top).to(base.device)
        flags = np.zeros(1, np.bool_) if rows is None else rows.active
        self._active = torch.from_numpy(flags.astype(np.uint8)).to(base.device)
        self._shape = {
            "WIDTH": coding.width,
            "ORDER": int(coding.order),
            "CONTEXTS": bounds.size,
            "HAS_ROWS": rows is not None,
            "SIZE": kernels.TILE,
        }
        self._length = 1 if rows is None else rows.length
        self._offset = 0 if rows is None else rows.offset
        table = torch.zeros((2, self._tiles, kernels.SLOTS), dtype=torch.int32, device=base.device)
        launch(kernels.count_contexts, self._tiles)(
            *(base, base if tuned is None else tuned, self._bounds, self._active),
            *(table[0], table[1], base.numel(), self._length, self._offset),
            **self._shape,
            HAS_TUNED=tuned is not None,
        )
        sums = table.sum(1).cpu().numpy()
        self.counts: list[int] = sums[0, : bounds.size].tolist()
        self.changed: list[int] = sums[1, : bounds.size].tolist()
        self._table = table

    def _firsts(self, which: int, starts: list[int]) -> torch.Tensor:
        """What comes before each tile's words of each context, if contexts begin at these."""
        table = self._table[which]
        before = torch.cumsum(table, 0, dtype=torch.int64) - table
        begin = torch.zeros(kernels.SLOTS, dtype=torch.int64)
        begin[: self._contexts] = torch.tensor(starts)
        return (before + begin.to(table.device)).to(torch.int32).contiguous()

    def scatter(self, tuned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rank within its context and the step of each changed word, as int32.

        They are ordered by context, and then by position.
        """
        total = sum(self.changed)
        ranks = torch.empty(total, dtype=torch.int32, device=self._base.device)
        steps = torch.empty_like(ranks)
        first_ranks = self._firsts(0, [0] * self._contexts)
        first_places = self._firsts(1, _starts(self.changed))
        launch(kernels.scatter_changes, self._tiles)(
            *(self._base, tuned, self._bounds, self._active, first_ranks, first_places),
            *(ranks, steps, self._base.numel(), self._length, self._offset),
            **self._shape,
        )
        return ranks, steps

    def patch(self, masks: DeviceMasks, steps: torch.Tensor, out: torch.Tensor) -> None:
        """Write the tuned words.

        Raises:
            StreamError: A row is flagged that has no change.
        """
        touched = torch.zeros_like(self._active)
        launch(kernels.patch_words, self._tiles)(
            *(self._base, out, self._bounds, self._active),
            *(self._firsts(0, [0] * self._contexts), masks.starts, masks.words, masks.before),
            *(steps, touched, self._base.numel(), self._length, self._offset),
            **self._shape,
        )
        if self._rows is not None and bool((self._active > touched).any()):
            msg = "a row without changes is flagged"
            raise StreamError(msg)


def _starts(sizes: list[int]) -> list[int]:
    """Where each of several parts begins that lie one behind the other."""
    return (np.cumsum(sizes) - sizes).tolist()  # type: ignore[no-any-return]
