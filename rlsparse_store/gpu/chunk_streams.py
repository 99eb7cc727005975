"""The streams of chunks on a device: the choices of the CPU, one launch per step for all chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.codec.chunk import flags_save, may_flag, sampling_stride
from rlsparse_store.codec.contexts import choose_bounds, key_bins, needs_histogram, single_bound
from rlsparse_store.gpu.diff import flag_rows, histograms
from rlsparse_store.gpu.split import partitions
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.chunk_words import ChunkWords
    from rlsparse_store.kernels.interface import Histogram, Rows, Streams

__all__ = ["make_streams"]


def make_streams(
    chunks: Sequence[ChunkWords],
    coding: WordCoding,
    mantissa_bits: int | None,
) -> list[Streams]:
    """Choose contexts and row flags for each chunk, and split it into streams.

    Makes the choices of :func:`rlsparse_store.codec.chunk.encode_chunk`.

    Args:
        chunks: The chunks. At least one word of each changed.
        coding: Width and order map of their words.
        mantissa_bits: Mantissa bits of a floating-point dtype, for the choice of contexts.
    """
    bins = key_bins(coding, mantissa_bits)
    rows = _candidate_rows(chunks)
    counted = [
        i
        for i, chunk in enumerate(chunks)
        if rows[i] is not None or needs_histogram(chunk.changes.count)
    ]
    found = _histograms(chunks, coding, bins, rows, counted)
    bounds = [
        choose_bounds(get_backend(), found[i], bins, chunk.changes.top_key)[0]
        if i in found
        else single_bound(bins, chunk.changes.top_key)
        for i, chunk in enumerate(chunks)
    ]
    return partitions(chunks, coding, bounds, rows)


def _candidate_rows(chunks: Sequence[ChunkWords]) -> list[Rows | None]:
    """Return the active rows of each chunk in which enough rows have no change."""
    found: list[Rows | None] = [None] * len(chunks)
    with_rows = [i for i, chunk in enumerate(chunks) if chunk.row is not None]
    flagged = flag_rows([chunks[i] for i in with_rows])
    for i, rows in zip(with_rows, flagged, strict=True):
        if may_flag(rows):
            found[i] = rows
    return found


def _histograms(
    chunks: Sequence[ChunkWords],
    coding: WordCoding,
    bins: NDArray[np.uint64],
    rows: list[Rows | None],
    counted: list[int],
) -> dict[int, Histogram]:
    """Return the histograms of the chunks to count: of all words, or of those in active rows.

    Replaces rows by ``None`` where row flags save no space.
    """

    def count(indices: list[int], active: list[Rows | None]) -> list[Histogram]:
        parts = [chunks[i] for i in indices]
        strides = [sampling_stride(chunk.changes.count) for chunk in parts]
        return histograms(parts, coding, bins, active, strides)

    found = dict(zip(counted, count(counted, [None] * len(counted)), strict=True))
    candidates = [i for i in counted if rows[i] is not None]
    of_active = count(candidates, [rows[i] for i in candidates])
    for i, histogram in zip(candidates, of_active, strict=True):
        candidate = rows[i]
        if candidate is not None and flags_save(candidate, found[i], histogram):
            found[i] = histogram
        else:
            rows[i] = None
    return found
