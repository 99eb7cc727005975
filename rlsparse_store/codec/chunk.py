"""A chunk: stored bytes and the numbers that a decoder needs beside them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.contexts import choose_bounds, key_bins
from rlsparse_store.errors import StreamError
from rlsparse_store.format.bits import StreamReader, pack_flags
from rlsparse_store.format.content_bounds import largest_content
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.format.frames import compress, decompress
from rlsparse_store.format.words import Words, as_words, to_bytes
from rlsparse_store.kernels.cost import ONE_BIT, mask_cost
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    Backend,
    ChunkWords,
    CpuBackend,
    Histogram,
    Rows,
    Streams,
    rows_touched,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "CodedChunk",
    "DeltaChunk",
    "Draft",
    "WholeChunk",
    "decode_delta",
    "decode_whole",
    "draft_chunks",
    "encode_chunk",
    "encode_whole",
    "estimate_bits",
    "may_be_whole",
    "open_chunk",
    "store_draft",
]

ROW_FLAG_MARGIN: Final = 128 * ONE_BIT
"""Row flags must save this much more than they cost to be worth their stream."""

MOSTLY_ACTIVE: Final = 8
"""Row flags are not tried when fewer than one row in this many is without changes."""

ENOUGH_SAMPLED: Final = 1 << 12
"""Changed words from which the contexts of a chunk can be chosen: with all of them the files of
the real cases are smaller by a part in 1,000."""

MOST_SAMPLED: Final = 32
"""The histogram looks at one in so many tiles at least."""

WHOLE_TRIAL: Final = 2
"""A delta above one part in this many of the raw bytes is compared with storing them whole."""


@dataclass(frozen=True, slots=True)
class DeltaChunk:
    """A chunk stored as changes of the base's words.

    Attributes:
        stored: The frame.
        has_row_flags: Whether the content starts with row flags.
        bounds: Inclusive upper key of each context.
        changed: Changed words of each context.
        steps: Changed words by step: -1, -2, -3, <= -4, 1, 2, 3, >= 4.
    """

    stored: bytes
    has_row_flags: bool
    bounds: tuple[int, ...]
    changed: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WholeChunk:
    """A chunk stored whole, as byte planes.

    Attributes:
        stored: The frame.
    """

    stored: bytes


CodedChunk = DeltaChunk | WholeChunk


@dataclass(frozen=True, slots=True)
class Draft:
    """A chunk split into streams that are not compressed yet.

    Attributes:
        rows: The active rows, if row flags pay.
        bounds: Inclusive upper key of each context.
        streams: The streams.
    """

    rows: Rows | None
    bounds: NDArray[np.uint64]
    streams: Streams


def encode_chunk(
    backend: CpuBackend, chunk: ChunkWords, coding: WordCoding, mantissa_bits: int | None
) -> CodedChunk:
    """Code the words of a chunk, of which at least one changed, the cheaper way.

    Args:
        backend: Runs the loops.
        chunk: The chunk.
        coding: Width and order map of its words.
        mantissa_bits: Of a floating-point dtype, for the choice of contexts.
    """
    (draft,) = draft_chunks(backend, [chunk], coding, mantissa_bits)
    return store_draft(backend, draft, coding, len(chunk.base), chunk.tuned)


def draft_chunks(
    backend: Backend, chunks: Sequence[ChunkWords], coding: WordCoding, mantissa_bits: int | None
) -> list[Draft]:
    """Choose contexts and row flags for each chunk, and split it into streams.

    Args:
        backend: Runs the loops.
        chunks: The chunks, at least one word of each of which changed.
        coding: Width and order map of their words.
        mantissa_bits: Of a floating-point dtype, for the choice of contexts.
    """
    bins = key_bins(coding, mantissa_bits)
    every = [min(MOST_SAMPLED, max(1, chunk.changes.number // ENOUGH_SAMPLED)) for chunk in chunks]
    none: list[Rows | None] = [None] * len(chunks)
    found = backend.histograms(chunks, coding, bins, none, every)
    rows = _try_rows(backend, chunks, coding, bins, found, every)
    bounds = [
        choose_bounds(backend, histogram, bins, chunk.changes.top_key)[0]
        for chunk, histogram in zip(chunks, found, strict=True)
    ]
    streams = backend.partitions(chunks, coding, bounds, rows)
    return [Draft(*parts) for parts in zip(rows, bounds, streams, strict=True)]


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
        words: How many words it has.
        tuned: Its tuned words; none are needed if :func:`may_be_whole` says no.
    """
    rows, streams = draft.rows, draft.streams
    content, ends = streams.content, _ends(streams)
    if rows is not None:
        flags = pack_flags(rows.active)
        content = flags + content
        ends = [len(flags), *(len(flags) + end for end in ends)]
    stored = _compress(backend, content, ends)
    if len(stored) * WHOLE_TRIAL > coding.nbytes(words):
        whole = encode_whole(backend, tuned, coding)
        if len(whole.stored) < len(stored):
            return whole
    return DeltaChunk(
        stored=stored,
        has_row_flags=rows is not None,
        bounds=tuple(draft.bounds.tolist()),
        changed=tuple(streams.changed),
        steps=tuple(streams.steps),
    )


def _compress(
    backend: CpuBackend, content: bytes | memoryview, ends: list[int], *, of_words: bool = False
) -> bytes:
    """Compress streams into one frame, with a new block where the distribution changes.

    A block carries its own Huffman table, so streams that differ are cheaper apart and streams
    that are alike, or tiny, are cheaper together.

    Args:
        backend: Chooses the blocks.
        content: The streams, one after another.
        ends: Where each ends, ascending to the end of the content; some may be empty.
        of_words: Whether they are words stored whole, which may repeat.
    """
    blocks = backend.block_ends(content, [end for end, _ in groupby(ends) if end])
    return compress(content, blocks, of_words=of_words)


def may_be_whole(draft: Draft, raw: int) -> bool:
    """Whether a chunk of so many raw bytes may take half of them, once it is compressed.

    A frame is never larger than its content by more than this: three bytes a block, and its header.
    """
    flags = 0 if draft.rows is None else draft.rows.active.size // 8
    most = len(draft.streams.content) + flags
    return (most + most // 64 + 1024) * WHOLE_TRIAL > raw


def _try_rows(
    backend: Backend,
    chunks: Sequence[ChunkWords],
    coding: WordCoding,
    bins: NDArray[np.uint64],
    histograms: list[Histogram],
    every: list[int],
) -> list[Rows | None]:
    """The active rows of each chunk whose flags pay; its histogram is then of what they leave."""
    with_rows = [i for i, chunk in enumerate(chunks) if chunk.row is not None]
    flagged = backend.flag_rows([chunks[i] for i in with_rows], coding)
    tried = [
        (i, rows)
        for i, rows in zip(with_rows, flagged, strict=True)
        if (rows.active.size - rows.active.sum()) * MOSTLY_ACTIVE >= rows.active.size
    ]
    places = [i for i, _ in tried]
    left = backend.histograms(
        [chunks[i] for i in places],
        coding,
        bins,
        [rows for _, rows in tried],
        [every[i] for i in places],
    )
    chosen: list[Rows | None] = [None] * len(chunks)
    for (i, rows), histogram in zip(tried, left, strict=True):
        if _flags_pay(rows, histograms[i], histogram):
            chosen[i], histograms[i] = rows, histogram
    return chosen


def _flags_pay(rows: Rows, before: Histogram, left: Histogram) -> bool:
    """Whether row flags cost less than what they save of the masks."""
    changed = left.magnitudes.sum(1)
    plain = int(mask_cost(before.words, changed).sum())
    flagged = int(mask_cost(left.words, changed).sum())
    active = int(rows.active.sum())
    flags = int(mask_cost(np.array([rows.active.size]), np.array([active]))[0])
    return flagged + flags + flags // 10 + ROW_FLAG_MARGIN < plain


def _ends(streams: Streams) -> list[int]:
    """Where streams end, and signs and classes near the boundaries of contexts as well.

    Their distribution may change there.
    """
    ends = list(accumulate(streams.sizes))
    contexts = len(streams.changed)
    masks, (signs, classes, *rest) = ends[:contexts], ends[contexts:]
    inner = list(accumulate(streams.changed[:-1]))
    return [
        *masks,
        *(masks[-1] + number // 8 for number in inner),
        signs,
        *(signs + number // 4 for number in inner),
        classes,
        *rest,
    ]


def estimate_bits(
    backend: CpuBackend, base: Words, tuned: Words, coding: WordCoding, mantissa_bits: int | None
) -> int:
    """About how many bits the changes of these words would take under this word coding."""
    changes = backend.changes(base, tuned, coding)
    if changes.number == 0:
        return 0
    bins = key_bins(coding, mantissa_bits)
    chunk = ChunkWords(base, tuned, None, changes)
    (histogram,) = backend.histograms([chunk], coding, bins, [None], [1])
    # Beyond the costs of masks and classes: a sign each, and the low bits of far steps. The last
    # class is open; its steps are taken to be of middling size.
    classes = np.arange(MAGNITUDE_CLASSES)
    low_bits = np.maximum(classes - 3, 0)
    low_bits[-1] = max(low_bits[-1], (low_bits[-1] + coding.width) // 2)
    moved = histogram.magnitudes.sum(0)
    return choose_bounds(backend, histogram, bins, changes.top_key)[1] // ONE_BIT + int(
        (moved * (1 + low_bits)).sum()
    )


def decode_delta(
    backend: CpuBackend,
    base: Words,
    coding: WordCoding,
    chunk: DeltaChunk,
    row: tuple[int, int] | None,
    out: Words,
) -> None:
    """Decode a delta chunk against the base words it was made from.

    Args:
        backend: Runs the loops.
        base: Words before, already checked.
        coding: Width and order map of the words.
        chunk: Stored bytes, already checked, and the chunk's numbers.
        row: Words of a row and the place of the chunk's first word in its row; needed where the
            chunk has row flags.
        out: Receives the tuned words. May be ``base``, which is then patched in place.

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
        words: How many words it has.
        coding: Width and order map of the words.
        row: Words of a row, and the place of the chunk's first word in its row.

    Returns:
        The active rows, if it has row flags, and the streams behind those.

    Raises:
        StreamError: The frame or the row flags break the format.
    """
    if not chunk.has_row_flags:
        return None, decompress(
            chunk.stored, largest_content(chunk.changed, words, coding.width, 0)
        )
    if row is None:
        msg = "row flags in a tensor without rows"
        raise StreamError(msg)
    length, offset = row
    number = rows_touched(words, length, offset)
    largest = largest_content(chunk.changed, words, coding.width, number)
    content = decompress(chunk.stored, largest)
    flags = StreamReader(content[: -(-number // 8)]).take_bits(number)
    # Not copied: it may be large.
    return Rows(flags == 1, length, offset), memoryview(content)[-(-number // 8) :]


def encode_whole(backend: CpuBackend, words: Words, coding: WordCoding) -> WholeChunk:
    """Store words as byte planes, the most significant first; floats with their sign last."""
    if coding.width == 4:
        packed = to_bytes(words, 4).tobytes()
        return WholeChunk(_compress(backend, packed, [len(packed)], of_words=True))
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        words = _rotated(words, 1)
    planes = words.view(np.uint8).reshape(words.size, -1).T[::-1]
    ends = [(i + 1) * words.size for i in range(len(planes))]
    return WholeChunk(_compress(backend, planes.tobytes(), ends, of_words=True))


def _rotated(words: Words, by: int) -> Words:
    """Every word rotated left by this many bits."""
    unsigned = words.dtype.type
    left, right = unsigned(by), unsigned(words.dtype.itemsize * 8 - by)
    rotated: Words = (words << left) | (words >> right)
    return rotated


def decode_whole(stored: bytes, count: int, coding: WordCoding) -> Words:
    """Read back ``count`` words.

    Raises:
        StreamError: The frame is broken or holds another number of bytes.
    """
    nbytes = coding.nbytes(count)
    content = np.frombuffer(decompress(stored, nbytes), np.uint8)
    if content.size != nbytes:
        msg = f"a whole chunk of {nbytes} bytes holds {content.size}"
        raise StreamError(msg)
    if coding.width == 4:
        return as_words(content, 4)
    planes = content.reshape(coding.width // 8, count)[::-1]
    words = as_words(np.ascontiguousarray(planes.T).ravel(), coding.width)
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        words = _rotated(words, coding.width - 1)
    return words
