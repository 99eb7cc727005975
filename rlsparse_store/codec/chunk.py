"""Encoding a chunk to stored bytes and index fields, and decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rlsparse_store.codec.contexts import (
    SINGLE_CONTEXT_CHANGES,
    choose_bounds,
    key_bins,
    needs_histogram,
    single_bound,
)
from rlsparse_store.errors import StreamError
from rlsparse_store.format.bits import StreamReader, pack_flags
from rlsparse_store.format.content_bounds import largest_content
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.format.frames import compress, decompress
from rlsparse_store.format.words import Words, as_words, to_bytes
from rlsparse_store.kernels.cost import ONE_BIT, mask_cost
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    ChunkWords,
    CpuBackend,
    Histogram,
    Rows,
    Streams,
    row_count,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CodedChunk",
    "DeltaChunk",
    "Draft",
    "WholeChunk",
    "candidate_rows",
    "decode_delta",
    "decode_whole",
    "draft_chunk",
    "encode_chunk",
    "encode_whole",
    "estimate_bits",
    "flags_save",
    "may_flag",
    "may_store_whole",
    "open_chunk",
    "sampling_stride",
    "store_draft",
]

ROW_FLAG_MARGIN: Final = 128 * ONE_BIT
"""Minimum net saving of row flags; it covers the overhead of one more stream."""

INACTIVE_ROWS: Final = 8
"""The encoder tries row flags if at least one row in this many has no change."""

SAMPLE_CHANGES: Final = 1 << 12
"""Changed words that a histogram samples, about. Without sampling, the real test cases are 0.1 %
smaller."""

MAX_STRIDE: Final = 32
"""Largest sampling stride of a histogram, in tiles."""

WHOLE_TRIAL_RATIO: Final = 2
"""The encoder also tries to store a chunk whole if the delta exceeds 1/2 of the raw bytes."""


class DeltaChunk(NamedTuple):
    """A chunk stored as changes to base words.

    Attributes:
        stored: The frame.
        has_row_flags: Whether row flags precede the streams.
        bounds: Inclusive upper key of each context.
        changed: Changed words of each context.
        steps: Changed words by step: -1, -2, -3, <= -4, 1, 2, 3, >= 4.
    """

    stored: bytes
    has_row_flags: bool
    bounds: tuple[int, ...]
    changed: tuple[int, ...]
    steps: tuple[int, ...]


class WholeChunk(NamedTuple):
    """A chunk stored whole, as byte planes.

    Attributes:
        stored: The frame.
    """

    stored: bytes


CodedChunk = DeltaChunk | WholeChunk


@dataclass(frozen=True, slots=True)
class Draft:
    """A chunk split into streams, before compression.

    Attributes:
        rows: The active rows; ``None`` without row flags.
        bounds: Inclusive upper key of each context.
        streams: The streams.
    """

    rows: Rows | None
    bounds: NDArray[np.uint64]
    streams: Streams


def encode_chunk(
    backend: CpuBackend, chunk: ChunkWords, coding: WordCoding, mantissa_bits: int | None
) -> CodedChunk:
    """Encode a chunk, as a delta or whole, whichever is smaller.

    Args:
        backend: Runs the loops.
        chunk: The chunk. At least one word changed.
        coding: Width and order map of its words.
        mantissa_bits: Mantissa bits of a floating-point dtype, for the choice of contexts.
    """
    rows = candidate_rows(backend, chunk)
    if rows is None:
        drafted = backend.draft(
            chunk.base,
            chunk.changes,
            coding,
            key_bins(coding, mantissa_bits),
            sampling_stride(chunk.changes.count),
            SINGLE_CONTEXT_CHANGES,
        )
        if drafted is not None:
            stored = DeltaChunk(
                stored=compress(drafted.content, drafted.blocks),
                has_row_flags=False,
                bounds=tuple(drafted.bounds),
                changed=tuple(drafted.changed),
                steps=tuple(drafted.steps),
            )
            return _smaller(backend, stored, coding, len(chunk.base), chunk.tuned)
    draft = draft_chunk(backend, chunk, coding, mantissa_bits, rows)
    return store_draft(backend, draft, coding, len(chunk.base), chunk.tuned)


def sampling_stride(changes: int) -> int:
    """Return the sampling stride of the histogram of a chunk with this number of changes."""
    return min(MAX_STRIDE, max(1, changes // SAMPLE_CHANGES))


def _smaller(
    backend: CpuBackend, delta: DeltaChunk, coding: WordCoding, words: int, tuned: Words
) -> CodedChunk:
    """Return a chunk as it is, or stored whole if that is smaller."""
    if len(delta.stored) * WHOLE_TRIAL_RATIO > coding.nbytes(words):
        whole = encode_whole(backend, tuned, coding)
        if len(whole.stored) < len(delta.stored):
            return whole
    return delta


def draft_chunk(
    backend: CpuBackend,
    chunk: ChunkWords,
    coding: WordCoding,
    mantissa_bits: int | None,
    rows: Rows | None,
) -> Draft:
    """Choose the contexts of a chunk, and split it into streams.

    Args:
        backend: Runs the loops.
        chunk: The chunk. At least one word changed.
        coding: Width and order map of its words.
        mantissa_bits: Mantissa bits of a floating-point dtype, for the choice of contexts.
        rows: Active rows, if the chunk gets row flags where they save space.
    """
    bins, changes = key_bins(coding, mantissa_bits), chunk.changes

    def count(active: Rows | None) -> Histogram:
        stride = sampling_stride(changes.count)
        return backend.histogram(chunk.base, changes, coding, bins, active, stride)

    if rows is None and not needs_histogram(changes.count):
        bounds = single_bound(bins, changes.top_key)
    else:
        histogram = count(None)
        if rows is not None:
            of_active = count(rows)
            if flags_save(rows, histogram, of_active):
                histogram = of_active
            else:
                rows = None
        bounds, _ = choose_bounds(backend, histogram, bins, changes.top_key)
    streams = backend.partition(chunk.base, changes, coding, bounds, rows)
    return Draft(rows, bounds, streams)


def store_draft(
    backend: CpuBackend,
    draft: Draft,
    coding: WordCoding,
    words: int,
    tuned: Words,
) -> CodedChunk:
    """Compress the streams of a chunk, or store it whole if that is smaller.

    Args:
        backend: Runs the loops.
        draft: The streams.
        coding: Width and order map of its words.
        words: Number of its words.
        tuned: Its tuned words; unused if :func:`may_store_whole` is false.
    """
    rows, streams = draft.rows, draft.streams
    content, ends = streams.content, _block_candidates(streams)
    if rows is not None:
        flags = pack_flags(rows.active)
        content = flags + content
        ends = [len(flags), *(len(flags) + end for end in ends)]
    stored = _compress(backend, content, ends)
    delta = DeltaChunk(
        stored=stored,
        has_row_flags=rows is not None,
        bounds=tuple(draft.bounds.tolist()),
        changed=tuple(streams.changed),
        steps=tuple(streams.steps),
    )
    return _smaller(backend, delta, coding, words, tuned)


def _compress(
    backend: CpuBackend, content: bytes | memoryview, ends: list[int], *, of_words: bool = False
) -> bytes:
    """Compress streams into one frame, with a new block where the byte distribution changes.

    Each block has its own Huffman table: separate blocks suit streams with different
    distributions, and one block suits streams that are alike or tiny.

    Args:
        backend: Chooses the blocks.
        content: The streams, concatenated.
        ends: End of each stream, ascending to the end of the content. Streams may be empty.
        of_words: Whether the streams are words stored whole, which may repeat.
    """
    blocks = backend.block_ends(content, [end for end, _ in groupby(ends) if end])
    return compress(content, blocks, of_words=of_words)


def may_store_whole(draft: Draft, raw: int) -> bool:
    """Return whether a draft may compress to more than half of the ``raw`` bytes of its chunk.

    The bound adds the overhead of a frame: its header, and three bytes per block.
    """
    flags = 0 if draft.rows is None else draft.rows.active.size // 8
    most = len(draft.streams.content) + flags
    return (most + most // 64 + 1024) * WHOLE_TRIAL_RATIO > raw


def candidate_rows(backend: CpuBackend, chunk: ChunkWords) -> Rows | None:
    """Return the active rows of a chunk in which enough rows have no change."""
    if chunk.row is None:
        return None
    rows = backend.active_rows(chunk.changes, len(chunk.base), *chunk.row)
    return rows if may_flag(rows) else None


def may_flag(rows: Rows) -> bool:
    """Return whether enough rows have no change for flags to be tried."""
    inactive = rows.active.size - np.count_nonzero(rows.active)
    return bool(inactive * INACTIVE_ROWS >= rows.active.size)


def flags_save(rows: Rows, all_words: Histogram, active_words: Histogram) -> bool:
    """Return whether row flags cost less than they save in the masks."""
    changed = active_words.magnitudes.sum(1)
    plain = int(mask_cost(all_words.words, changed).sum())
    flagged = int(mask_cost(active_words.words, changed).sum())
    active = int(rows.active.sum())
    flags = int(mask_cost(np.array([rows.active.size]), np.array([active]))[0])
    return flagged + flags + flags // 10 + ROW_FLAG_MARGIN < plain


def _block_candidates(streams: Streams) -> list[int]:
    """Return possible ends of blocks: the ends of streams, and context boundaries within them.

    The distribution of signs and of classes may change where a context ends.
    """
    ends = list(accumulate(streams.sizes))
    contexts = len(streams.changed)
    masks, (signs, classes, *rest) = ends[:contexts], ends[contexts:]
    inner = list(accumulate(streams.changed[:-1]))
    return [
        *masks,
        *(masks[-1] + changed // 8 for changed in inner),
        signs,
        *(signs + changed // 4 for changed in inner),
        classes,
        *rest,
    ]


def estimate_bits(
    backend: CpuBackend, base: Words, tuned: Words, coding: WordCoding, mantissa_bits: int | None
) -> int:
    """Estimate the bits that the changes between these words take under a word coding."""
    changes = backend.changed_words(base, tuned, coding)
    if changes.count == 0:
        return 0
    bins = key_bins(coding, mantissa_bits)
    histogram = backend.histogram(base, changes, coding, bins, None, 1)
    # Added to masks and classes: one sign per change, and the low bits of far steps. The last class
    # has no upper limit; assume steps of medium size.
    classes = np.arange(MAGNITUDE_CLASSES)
    low_bits = np.maximum(classes - 3, 0)
    low_bits[-1] = max(low_bits[-1], (low_bits[-1] + coding.width) // 2)
    steps = histogram.magnitudes.sum(0)
    return choose_bounds(backend, histogram, bins, changes.top_key)[1] // ONE_BIT + int(
        (steps * (1 + low_bits)).sum()
    )


def decode_delta(
    backend: CpuBackend,
    base: Words,
    coding: WordCoding,
    chunk: DeltaChunk,
    row: tuple[int, int] | None,
    out: Words,
) -> None:
    """Decode a delta chunk against its base words.

    Args:
        backend: Runs the loops.
        base: Verified base words.
        coding: Width and order map of the words.
        chunk: The chunk, with verified stored bytes.
        row: Words per row, and the offset of the chunk's first word in its row; required if the
            chunk has row flags.
        out: Receives the tuned words. May be ``base``, to decode in place.

    Raises:
        StreamError: The chunk breaks the format.
    """
    rows, content = open_chunk(chunk, len(base), coding, row)
    bounds = np.array(chunk.bounds, np.uint64)
    backend.apply(base, coding, bounds, rows, list(chunk.changed), content, out)


def open_chunk(
    chunk: DeltaChunk, words: int, coding: WordCoding, row: tuple[int, int] | None
) -> tuple[Rows | None, bytes | memoryview]:
    """Decompress a delta chunk.

    Args:
        chunk: The chunk.
        words: Number of its words.
        coding: Width and order map of the words.
        row: Words per row, and the offset of the chunk's first word in its row.

    Returns:
        The active rows, or ``None`` without row flags, and the streams.

    Raises:
        StreamError: The frame or the row flags break the format.
    """
    if not chunk.has_row_flags:
        return None, decompress(
            chunk.stored, largest_content(chunk.changed, words, coding.width, 0)
        )
    if row is None:
        msg = "a chunk has row flags, but its tensor has no rows"
        raise StreamError(msg)
    length, offset = row
    count = row_count(words, length, offset)
    largest = largest_content(chunk.changed, words, coding.width, count)
    content = decompress(chunk.stored, largest)
    flags = StreamReader(content[: -(-count // 8)]).take_bits(count)
    # A view, because the content may be large.
    return Rows(flags == 1, length, offset), memoryview(content)[-(-count // 8) :]


def encode_whole(backend: CpuBackend, words: Words, coding: WordCoding) -> WholeChunk:
    """Store words as byte planes, the most significant first.

    Sign-magnitude words are rotated, so that the sign is their lowest bit.
    """
    if coding.width == 4:
        packed = to_bytes(words, 4).tobytes()
        return WholeChunk(_compress(backend, packed, [len(packed)], of_words=True))
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        words = _rotate_left(words, 1)
    planes = words.view(np.uint8).reshape(words.size, -1).T[::-1]
    ends = [(i + 1) * words.size for i in range(len(planes))]
    return WholeChunk(_compress(backend, planes.tobytes(), ends, of_words=True))


def _rotate_left(words: Words, bits: int) -> Words:
    """Rotate each word left."""
    unsigned = words.dtype.type
    left, right = unsigned(bits), unsigned(words.dtype.itemsize * 8 - bits)
    rotated: Words = (words << left) | (words >> right)
    return rotated


def decode_whole(stored: bytes, count: int, coding: WordCoding) -> Words:
    """Decode ``count`` words that were stored whole.

    Raises:
        StreamError: The frame is malformed or has the wrong size.
    """
    nbytes = coding.nbytes(count)
    content = np.frombuffer(decompress(stored, nbytes), np.uint8)
    if content.size != nbytes:
        msg = f"a chunk stored whole has {content.size} bytes instead of {nbytes}"
        raise StreamError(msg)
    if coding.width == 4:
        return as_words(content, 4)
    planes = content.reshape(coding.width // 8, count)[::-1]
    words = as_words(np.ascontiguousarray(planes.T).ravel(), coding.width)
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        words = _rotate_left(words, coding.width - 1)
    return words
