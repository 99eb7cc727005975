"""Encoding a chunk to stored bytes and index fields, and decoding it."""

from __future__ import annotations

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
from rlsparse_store.format.digests import bytes_check
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.format.frames import compress, decompress
from rlsparse_store.format.index.records import NO_STEPS, ChunkCoding, ChunkRecord
from rlsparse_store.format.words import Words, as_words, to_bytes
from rlsparse_store.kernels.cost import ONE_BIT, ROW_FLAG_MARGIN, mask_cost
from rlsparse_store.kernels.interface import (
    MAGNITUDE_CLASSES,
    ChunkWords,
    CpuBackend,
    Draft,
    DraftRules,
    Histogram,
    Rows,
    Streams,
    place_in_row,
    row_count,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "DRAFT_RULES",
    "EncodedChunk",
    "candidate_rows",
    "compress_draft",
    "decode_chunk",
    "decode_whole",
    "decoded_leaves",
    "encode_chunk",
    "encode_whole",
    "estimate_bits",
    "flags_save",
    "lay_out",
    "may_flag",
    "may_store_whole",
    "open_chunk",
    "sampling_stride",
    "split_chunk",
]

INACTIVE_ROWS: Final = 8
"""The encoder tries row flags if at least one row in this many has no change."""

SAMPLE_CHANGES: Final = 1 << 12
"""Changed words that a histogram samples, about. Without sampling, the real test cases are 0.1 %
smaller."""

MAX_STRIDE: Final = 32
"""Largest sampling stride of a histogram, in tiles."""

WHOLE_TRIAL_RATIO: Final = 2
"""The encoder also tries to store a chunk whole if the delta exceeds 1/2 of the raw bytes."""


class EncodedChunk(NamedTuple):
    """An encoded chunk.

    Attributes:
        record: Its record. The number of its tensor, its position in a file, and the checks of base
            and result words are zero until those are known.
        stored: The frame.
        changes: Changed words; 0 without base words.
        steps: Changed words by step: -1, -2, -3, <= -4, 1, 2, 3, >= 4. Zeros if it is stored whole.
    """

    record: ChunkRecord
    stored: bytes
    changes: int
    steps: tuple[int, ...] = NO_STEPS


def encode_chunk(
    backend: CpuBackend, chunk: ChunkWords, coding: WordCoding, mantissa_bits: int | None
) -> EncodedChunk:
    """Encode a chunk, as a delta or whole, whichever is smaller.

    Args:
        backend: Runs the loops.
        chunk: The chunk. At least one word changed.
        coding: Width and order map of its words.
        mantissa_bits: Mantissa bits of a floating-point dtype, for the choice of contexts.
    """
    rows = candidate_rows(backend, chunk)
    draft = backend.draft(
        chunk.base,
        chunk.changes,
        coding,
        key_bins(coding, mantissa_bits),
        rows,
        sampling_stride(chunk.changes.count),
        SINGLE_CONTEXT_CHANGES,
    )
    if draft is None:
        draft = lay_out(backend, split_chunk(backend, chunk, coding, mantissa_bits, rows))
    return compress_draft(
        backend, draft, coding, chunk.first, len(chunk.base), lambda: chunk.tuned(backend)
    )


DRAFT_RULES: Final = DraftRules(
    few=SINGLE_CONTEXT_CHANGES,
    sample=SAMPLE_CHANGES,
    most_stride=MAX_STRIDE,
    inactive_rows=INACTIVE_ROWS,
)
"""The choices of :func:`encode_chunk`, for many chunks at once."""


def sampling_stride(changes: int) -> int:
    """Return the sampling stride of the histogram of a chunk with this number of changes."""
    return min(MAX_STRIDE, max(1, changes // SAMPLE_CHANGES))


def split_chunk(
    backend: CpuBackend,
    chunk: ChunkWords,
    coding: WordCoding,
    mantissa_bits: int | None,
    rows: Rows | None,
) -> Streams:
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
    return backend.partition(chunk.base, changes, coding, bounds, rows)


def lay_out(backend: CpuBackend, streams: Streams) -> Draft:
    """Put row flags before the streams of a chunk, and choose the blocks of its frame."""
    rows, content, ends = streams.rows, streams.content, _block_candidates(streams)
    if rows is not None:
        flags = pack_flags(rows.active)
        content = flags + content
        ends = [len(flags), *(len(flags) + end for end in ends)]
    return Draft(
        bounds=streams.bounds.tolist(),
        changed=streams.changed,
        content=content,
        blocks=_choose_blocks(backend, content, ends),
        steps=streams.steps,
        has_row_flags=rows is not None,
    )


def compress_draft(
    backend: CpuBackend,
    draft: Draft,
    coding: WordCoding,
    first: int,
    words: int,
    tuned: Callable[[], Words],
) -> EncodedChunk:
    """Compress a chunk, or store it whole if that is smaller.

    Args:
        backend: Runs the loops.
        draft: Its streams.
        coding: Width and order map of its words.
        first: Its first word.
        words: Number of its words.
        tuned: Returns its tuned words; not called if :func:`may_store_whole` is false.
    """
    stored = compress(draft.content, draft.blocks)
    changes = sum(draft.changed)
    if len(stored) * WHOLE_TRIAL_RATIO > coding.nbytes(words):
        whole = encode_whole(backend, first, tuned(), coding)
        if len(whole.stored) < len(stored):
            return whole._replace(changes=changes)
    kind = ChunkCoding.DELTA_WITH_ROWS if draft.has_row_flags else ChunkCoding.DELTA
    record = _record(first, words, kind, stored, draft.bounds, draft.changed)
    return EncodedChunk(record, stored, changes, tuple(draft.steps))


def _record(
    first: int,
    length: int,
    coding: ChunkCoding,
    stored: bytes,
    bounds: Sequence[int] = (),
    changed: Sequence[int] = (),
) -> ChunkRecord:
    """Return the record of a chunk, with zeros for what is not known yet."""
    return ChunkRecord(
        tensor=0,
        first=first,
        length=length,
        coding=coding,
        shard=0,
        offset=0,
        stored=len(stored),
        check=bytes_check(stored),
        result=0,
        bounds=tuple(bounds),
        changed=tuple(changed),
    )


def _choose_blocks(backend: CpuBackend, content: bytes | memoryview, ends: list[int]) -> list[int]:
    """Choose the blocks of a frame: a new one where the distribution of bytes changes.

    Each block has its own Huffman table: separate blocks suit streams with different
    distributions, and one block suits streams that are alike or tiny.

    Args:
        backend: Chooses the blocks.
        content: The streams, concatenated.
        ends: End of each stream, ascending to the end of the content. Streams may be empty.
    """
    return backend.block_ends(content, [end for end, _ in groupby(ends) if end])


def may_store_whole(streams: Streams, raw: int) -> bool:
    """Return whether streams may compress to more than half of the ``raw`` bytes of their chunk.

    The bound adds the overhead of a frame: its header, and three bytes per block.
    """
    flags = 0 if streams.rows is None else streams.rows.active.size // 8
    most = len(streams.content) + flags
    return (most + most // 64 + 1024) * WHOLE_TRIAL_RATIO > raw


def candidate_rows(backend: CpuBackend, chunk: ChunkWords) -> Rows | None:
    """Return the active rows of a chunk in which enough rows have no change."""
    if chunk.place is None:
        return None
    rows = backend.active_rows(chunk.changes, len(chunk.base), *chunk.place)
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


def decode_chunk(
    backend: CpuBackend,
    record: ChunkRecord,
    stored: bytes,
    coding: WordCoding,
    row_words: int | None,
    base: Words,
    out: Words,
) -> Words:
    """Decode a chunk.

    Args:
        backend: Runs the loops.
        record: Its record.
        stored: Its verified stored bytes.
        coding: Width and order map of the words.
        row_words: Words per row of its tensor; ``None`` if the tensor has no rows.
        base: Verified base words. Ignored for a chunk that is stored whole.
        out: Memory for the tuned words. May be ``base``, to decode in place.

    Returns:
        The tuned words: ``out``, or new memory for a chunk that is stored whole.

    Raises:
        StreamError: The chunk breaks the format.
    """
    if record.coding is ChunkCoding.WHOLE:
        return decode_whole(stored, record.length, coding)
    rows, content = open_chunk(record, stored, coding, row_words)
    bounds = np.array(record.bounds, np.uint64)
    backend.apply(base, coding, bounds, rows, list(record.changed), content, out)
    return out


def decoded_leaves(
    backend: CpuBackend,
    record: ChunkRecord,
    stored: bytes,
    coding: WordCoding,
    row_words: int | None,
    base: Words,
) -> NDArray[np.uint64]:
    """Decode a chunk, as :func:`decode_chunk` does, only to hash the bytes of its tuned words.

    Args:
        backend: Runs the loops.
        record: Its record.
        stored: Its verified stored bytes.
        coding: Width and order map of the words.
        row_words: Words per row of its tensor; ``None`` if the tensor has no rows.
        base: Verified base words. Ignored for a chunk that is stored whole.

    Returns:
        The leaf hashes.

    Raises:
        StreamError: The chunk breaks the format.
    """
    if record.coding is ChunkCoding.WHOLE:
        words = decode_whole(stored, record.length, coding)
        return backend.leaf_hashes(to_bytes(words, coding.width))
    rows, content = open_chunk(record, stored, coding, row_words)
    bounds, changed = np.array(record.bounds, np.uint64), list(record.changed)
    return backend.apply_hashed(base, coding, bounds, rows, changed, content, None)


def open_chunk(
    record: ChunkRecord, stored: bytes, coding: WordCoding, row_words: int | None
) -> tuple[Rows | None, bytes | memoryview]:
    """Decompress a delta chunk.

    Args:
        record: Its record.
        stored: Its stored bytes.
        coding: Width and order map of the words.
        row_words: Words per row of its tensor; ``None`` if the tensor has no rows.

    Returns:
        The active rows, or ``None`` without row flags, and the streams.

    Raises:
        StreamError: The frame or the row flags break the format.
    """
    if record.coding is not ChunkCoding.DELTA_WITH_ROWS:
        largest = largest_content(record.changed, record.length, coding.width, 0)
        return None, decompress(stored, largest)
    place = place_in_row(record.first, row_words)
    if place is None:
        msg = "a chunk has row flags, but its tensor has no rows"
        raise StreamError(msg)
    length, offset = place
    count = row_count(record.length, length, offset)
    largest = largest_content(record.changed, record.length, coding.width, count)
    content = decompress(stored, largest)
    flags = StreamReader(content[: -(-count // 8)]).take_bits(count)
    # A view, because the content may be large.
    return Rows(flags == 1, length, offset), memoryview(content)[-(-count // 8) :]


def encode_whole(backend: CpuBackend, first: int, words: Words, coding: WordCoding) -> EncodedChunk:
    """Store words as byte planes, the most significant first.

    Sign-magnitude words are rotated, so that the sign is their lowest bit.

    Args:
        backend: Chooses the blocks.
        first: Number of the first word in its tensor.
        words: The words.
        coding: Their width and order map.
    """
    content, ends = _byte_planes(words, coding)
    blocks = _choose_blocks(backend, content, ends)
    stored = compress(content, blocks, of_words=True)
    return EncodedChunk(_record(first, words.size, ChunkCoding.WHOLE, stored), stored, 0)


def _byte_planes(words: Words, coding: WordCoding) -> tuple[bytes, list[int]]:
    """Return the byte planes of words, and where each ends."""
    if coding.width == 4:
        packed = to_bytes(words, 4).tobytes()
        return packed, [len(packed)]
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        words = _rotate_left(words, 1)
    planes = words.view(np.uint8).reshape(words.size, -1).T[::-1]
    return planes.tobytes(), [(i + 1) * words.size for i in range(len(planes))]


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
