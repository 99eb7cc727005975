"""The kernels of a device, with the interface of a backend.

Work on every word or on every changed word runs in Triton kernels, launched for several chunks at
once. Choices that depend on a histogram are made on the CPU by the shared code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.gpu.diff import Diff, diff, diff_chunks, flag_rows, histograms
from rlsparse_store.gpu.join import join_chunks
from rlsparse_store.gpu.split import partitions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rlsparse_store.errors import StreamError
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.chunk_words import ChunkWords, CodedWords
    from rlsparse_store.kernels.interface import Histogram, Rows, Streams

__all__ = ["WIDTHS", "GpuBackend"]

WIDTHS: Final = (8, 16, 32)
"""Word widths that the kernels support, in bits."""


class GpuBackend:
    """A backend whose words are one-dimensional torch tensors of int8, int16 or int32.

    Its streams equal those of the NumPy backend bit for bit.
    """

    name = "gpu"

    def diff(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], coding: WordCoding) -> Diff:
        """Compare pairs of base and tuned words in one pass."""
        return diff(pairs, coding)

    def flag_rows(self, chunks: Sequence[ChunkWords], coding: WordCoding) -> list[Rows]:
        """Find the rows of each chunk that hold a changed word."""
        return flag_rows(diff_chunks(chunks, coding))

    def histograms(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Sequence[Rows | None],
        strides: Sequence[int],
    ) -> list[Histogram]:
        """Count words and steps of each chunk by bin of the base word's key."""
        return histograms(diff_chunks(chunks, coding), coding, bins, rows, strides)

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
        """Decode the streams of chunks in place. If one is invalid, no word is written."""
        return join_chunks(chunks, [chunk.words for chunk in chunks], coding)

    def verify(
        self, chunks: Sequence[CodedWords], tuned: Sequence[torch.Tensor], coding: WordCoding
    ) -> list[StreamError | None]:
        """Decode chunks without writing, and report those that differ from the tuned words.

        Only changed words are compared: the diff has compared the others.
        """
        return join_chunks(chunks, tuned, coding, verifies=True)
