"""Which words are in which context, tile by tile, and what is written by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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

__all__ = ["ContextTable", "MarkedChanges"]

WIDE: Final = 8
"""Warps of kernels that hold much of each word: with four, registers would spill."""


class _Contexts:
    """The contexts of a chunk, as the kernels take them.

    Args:
        base: The base's words.
        coding: Width and order map.
        bounds: Inclusive upper keys of the contexts.
        rows: The active rows, if only those count.
    """

    def __init__(
        self, base: torch.Tensor, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> None:
        self.base = base
        self.number = bounds.size
        self.device = base.device
        # Unsigned bounds in signed words of 32 bits, as the kernels read them.
        top = np.minimum(bounds, np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
        self.bounds = torch.from_numpy(top).to(base.device)
        self.has_rows = rows is not None
        flags = np.zeros(1, np.bool_) if rows is None else rows.active
        self.active = torch.from_numpy(flags.astype(np.uint8)).to(base.device)
        self.place = (1, 0) if rows is None else (rows.length, rows.offset)
        self.words = {
            "WIDTH": coding.width,
            "ORDER": int(coding.order),
            "CONTEXTS": bounds.size,
        }
        self.tiles = grid_of(base.numel())

    @property
    def constants(self) -> dict[str, int]:
        """What kernels over all words are compiled for."""
        return {**self.words, "HAS_ROWS": self.has_rows, "SIZE": kernels.TILE}

    def table(self, tiles: int) -> torch.Tensor:
        """Counters of each tile."""
        return torch.zeros((tiles, kernels.SLOTS), dtype=torch.int32, device=self.device)

    def firsts(self, table: torch.Tensor, starts: list[int]) -> torch.Tensor:
        """What comes before each tile's words of each context, if contexts begin at these."""
        before = torch.cumsum(table, 0, dtype=torch.int64) - table
        begin = torch.zeros(kernels.SLOTS, dtype=torch.int64)
        begin[: self.number] = torch.tensor(starts)
        return (before + begin.to(self.device)).to(torch.int32).contiguous()


class ContextTable:
    """How many words of each context each tile of a chunk holds, to write what changed.

    Args:
        base: The base's words.
        coding: Width and order map.
        bounds: Inclusive upper keys of the contexts.
        rows: The active rows, if only those count.

    Attributes:
        counts: Words of each context.
    """

    def __init__(
        self, base: torch.Tensor, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> None:
        self._contexts = contexts = _Contexts(base, coding, bounds, rows)
        self._table = contexts.table(contexts.tiles)
        launch(kernels.count_contexts, contexts.tiles)(
            *(base, contexts.bounds, contexts.active, self._table),
            *(base.numel(), *contexts.place),
            **contexts.constants,
        )
        self.counts: list[int] = self._table.sum(0).tolist()[: contexts.number]

    def patch(self, masks: DeviceMasks, steps: torch.Tensor, out: torch.Tensor) -> None:
        """Write the tuned words.

        Raises:
            StreamError: A row is flagged that has no change.
        """
        contexts = self._contexts
        touched = torch.zeros_like(contexts.active)
        first_ranks = contexts.firsts(self._table, [0] * contexts.number)
        launch(kernels.patch_words, contexts.tiles)(
            *(contexts.base, out, contexts.bounds, contexts.active, first_ranks),
            *(masks.starts, masks.words, masks.before, steps, touched),
            *(contexts.base.numel(), *contexts.place),
            **contexts.constants,
            num_warps=WIDE,
        )
        if contexts.has_rows and bool((contexts.active > touched).any()):
            msg = "a row without changes is flagged"
            raise StreamError(msg)


class MarkedChanges:
    """Which words of a chunk are in which context, and which of them changed.

    Args:
        base: The base's words.
        tuned: The tuned words.
        coding: Width and order map.
        bounds: Inclusive upper keys of the contexts.
        rows: The active rows, if only those count.

    Attributes:
        counts: Words of each context.
        changed: Changed words of each context.
    """

    def __init__(
        self,
        base: torch.Tensor,
        tuned: torch.Tensor,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> None:
        self._contexts = contexts = _Contexts(base, coding, bounds, rows)
        self._tuned = tuned
        # A plane of bits for each context and one more, each of whole tiles.
        self._plane = contexts.tiles * (kernels.TILE // 32)
        planes = (contexts.number + 1, self._plane)
        self._marks = torch.empty(planes, dtype=torch.int32, device=contexts.device)
        launch(kernels.mark_contexts, contexts.tiles)(
            *(base, tuned, contexts.bounds, contexts.active, self._marks.view(torch.uint8)),
            *(base.numel(), 4 * self._plane, *contexts.place),
            **contexts.constants,
            num_warps=WIDE,
        )
        self._tiles = grid_of(self._plane, kernels.GROUPS)
        self._members, self._hits = contexts.table(self._tiles), contexts.table(self._tiles)
        launch(kernels.tally_marks, self._tiles)(
            *(self._marks, self._members, self._hits, self._plane),
            CONTEXTS=contexts.number,
            SIZE=kernels.GROUPS,
        )
        sums = torch.stack([self._members.sum(0), self._hits.sum(0)]).tolist()
        self.counts: list[int] = sums[0][: contexts.number]
        self.changed: list[int] = sums[1][: contexts.number]

    def scatter(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rank within its context and the step of each changed word, as int32.

        They are ordered by context, and then by position.
        """
        contexts = self._contexts
        ranks = torch.empty(sum(self.changed), dtype=torch.int32, device=contexts.device)
        steps = torch.empty_like(ranks)
        first_ranks = contexts.firsts(self._members, [0] * contexts.number)
        first_places = contexts.firsts(self._hits, _starts(self.changed))
        launch(kernels.scatter_changes, self._tiles)(
            *(contexts.base, self._tuned, self._marks, first_ranks, first_places),
            *(ranks, steps, self._plane),
            **contexts.words,
            SIZE=kernels.GROUPS,
            num_warps=WIDE,
        )
        return ranks, steps


def _starts(sizes: list[int]) -> list[int]:
    """Where each of several parts begins that lie one behind the other."""
    return (np.cumsum(sizes) - sizes).tolist()  # type: ignore[no-any-return]
