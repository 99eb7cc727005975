"""The loops of a backend over words on a device.

What touches every word, or every changed one, is a kernel of Triton, launched for several chunks at
a time. What is chosen from a histogram is chosen on the CPU, by the same code as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.gpu.diff import Diff, diff, diff_chunks, flag_rows, histograms
from rlsparse_store.gpu.join import join_chunks
from rlsparse_store.gpu.split import partitions
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import (
    Changes,
    ChunkWords,
    CodedWords,
    Histogram,
    Rows,
    Streams,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rlsparse_store.errors import StreamError
    from rlsparse_store.format.dtypes import WordCoding

__all__ = ["WIDTHS", "GpuBackend"]

WIDTHS: Final = (8, 16, 32)
"""Widths of words, in bits, that the kernels take."""


class GpuBackend:
    """A backend whose words are one-dimensional torch tensors of int8, int16 or int32.

    It gives the streams of the NumPy backend bit for bit. Words of other widths are refused.
    """

    name = "gpu"

    def __init__(self) -> None:
        self._cpu = get_backend()

    def diff(self, runs: Sequence[tuple[torch.Tensor, torch.Tensor]], coding: WordCoding) -> Diff:
        """Compare runs of base and tuned words, all of them in one pass."""
        return diff(runs, coding)

    def changes(self, base: torch.Tensor, tuned: torch.Tensor, coding: WordCoding) -> Changes:
        """Count the words that differ and find the largest key among them."""
        found = diff([(base, tuned)], coding)
        return Changes(int(found.numbers.sum()), int(found.top_keys.max()))

    def flag_rows(self, chunks: Sequence[ChunkWords], coding: WordCoding) -> list[Rows]:
        """Find the rows of each chunk that hold a changed word."""
        return flag_rows(diff_chunks(chunks, coding))

    def histograms(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Sequence[Rows | None],
        every: Sequence[int],
    ) -> list[Histogram]:
        """Count words and steps of each chunk by bin of the base word's key."""
        return histograms(diff_chunks(chunks, coding), coding, bins, rows, every)

    def partitions(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bounds: Sequence[NDArray[np.uint64]],
        rows: Sequence[Rows | None],
    ) -> list[Streams]:
        """Split each chunk into the streams of its contexts."""
        return partitions(diff_chunks(chunks, coding), coding, bounds, rows)

    def join(self, chunks: Sequence[CodedWords], coding: WordCoding) -> list[StreamError | None]:
        """Decode the streams of chunks, in place. If any is wrong, no word is written."""
        return join_chunks(chunks, [chunk.words for chunk in chunks], coding)

    def prove(
        self, chunks: Sequence[CodedWords], tuned: Sequence[torch.Tensor], coding: WordCoding
    ) -> list[StreamError | None]:
        """Say of which chunks decoding would not give the tuned words. Nothing is written.

        Every word that changed is compared; the others were compared by the diff.
        """
        return join_chunks(chunks, tuned, coding, proves=True)

    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Cut bins into contexts at the least cost."""
        return self._cpu.cheapest_cut(words, magnitudes)
