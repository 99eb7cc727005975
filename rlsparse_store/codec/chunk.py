"""A chunk: stored bytes and the numbers that a decoder needs beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.backends import Backend, Changes, Histogram, Rows, Words, rows_touched
from rlsparse_store.backends.cost import ONE_BIT, mask_cost
from rlsparse_store.backends.interface import MAGNITUDE_CLASSES
from rlsparse_store.backends.numpy.bits import Cursor, pack_flags
from rlsparse_store.codec.contexts import choose_bounds, key_bins
from rlsparse_store.codec.frames import compress, decompress
from rlsparse_store.codec.views import as_words, to_bytes
from rlsparse_store.dtypes import OrderMap, WordCoding
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CodedChunk",
    "DeltaChunk",
    "WholeChunk",
    "decode_delta",
    "decode_whole",
    "encode_chunk",
    "encode_whole",
    "estimate_bits",
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


def encode_chunk(
    backend: Backend,
    base: Words,
    tuned: Words,
    coding: WordCoding,
    mantissa_bits: int | None,
    row: tuple[int, int] | None,
    changes: Changes,
) -> CodedChunk:
    """Code the words of a chunk, of which at least one changed, the cheaper way.

    Args:
        backend: Runs the loops.
        base: Words before.
        tuned: Words after.
        coding: Width and order map of the words.
        mantissa_bits: Of a floating-point dtype, for the choice of contexts.
        row: Words of a row of the tensor and the place of the chunk's first word in its row,
            or ``None`` where rows mean nothing.
        changes: What :meth:`Backend.changes` says of these words.
    """
    bins = key_bins(coding, mantissa_bits)
    every = min(MOST_SAMPLED, max(1, changes.number // ENOUGH_SAMPLED))
    histogram = backend.histogram(base, tuned, coding, bins, every=every)
    rows = None
    if row is not None:
        rows, histogram = _try_rows(backend, base, tuned, coding, bins, histogram, row, every)
    bounds, _ = choose_bounds(backend, histogram, bins, changes.top_key)
    streams = backend.partition(base, tuned, coding, bounds, rows)
    flags = [pack_flags(rows.active)] if rows is not None else []
    stored = compress(
        backend,
        [
            *flags,
            *streams.masks,
            *_by_context(streams.signs, streams.changed, 1),
            *_by_context(streams.classes, streams.changed, 2),
            streams.exponents,
            streams.low_bits,
        ],
    )
    raw = coding.nbytes(len(base))
    if len(stored) * WHOLE_TRIAL > raw:
        whole = encode_whole(backend, backend.on_host(tuned), coding)
        if len(whole.stored) < len(stored):
            return whole
    return DeltaChunk(
        stored=stored,
        has_row_flags=rows is not None,
        bounds=tuple(int(bound) for bound in bounds),
        changed=tuple(streams.changed),
        steps=tuple(streams.steps),
    )


def _try_rows(
    backend: Backend,
    base: Words,
    tuned: Words,
    coding: WordCoding,
    bins: NDArray[np.uint64],
    histogram: Histogram,
    row: tuple[int, int],
    every: int,
) -> tuple[Rows | None, Histogram]:
    """Row flags and the histogram of the words they leave, if that is cheaper."""
    rows = backend.active_rows(base, tuned, *row)
    active = int(rows.active.sum())
    if (rows.active.size - active) * MOSTLY_ACTIVE < rows.active.size:
        return None, histogram
    left = backend.histogram(base, tuned, coding, bins, rows, every)
    changed = left.magnitudes.sum(1)
    plain = int(mask_cost(histogram.words, changed).sum())
    flagged = int(mask_cost(left.words, changed).sum())
    flags = int(mask_cost(np.array([rows.active.size]), np.array([active]))[0])
    if flagged + flags + flags // 10 + ROW_FLAG_MARGIN >= plain:
        return None, histogram
    return rows, left


def _by_context(stream: bytes, changed: list[int], bits: int) -> list[bytes]:
    """Cut a stream of values near the context boundaries, where its distribution may change."""
    ends = [end * bits // 8 for end in np.cumsum(changed)]
    ends[-1] = len(stream)
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def estimate_bits(
    backend: Backend, base: Words, tuned: Words, coding: WordCoding, mantissa_bits: int | None
) -> int:
    """About how many bits the changes of these words would take under this word coding."""
    changes = backend.changes(base, tuned, coding)
    if changes.number == 0:
        return 0
    bins = key_bins(coding, mantissa_bits)
    histogram = backend.histogram(base, tuned, coding, bins)
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
    backend: Backend,
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
        row: As in :func:`encode_chunk`; needed where the chunk has row flags.
        out: Receives the tuned words. May be ``base``, which is then patched in place.

    Raises:
        StreamError: The chunk breaks the format.
    """
    content = decompress(chunk.stored, _largest_content(chunk, len(base), coding.width))
    rows = None
    if chunk.has_row_flags:
        if row is None:
            msg = "row flags in a tensor without rows"
            raise StreamError(msg)
        length, offset = row
        number = rows_touched(len(base), length, offset)
        flags = Cursor(content[: -(-number // 8)]).take_bits(number)
        content = content[-(-number // 8) :]
        rows = Rows(flags == 1, length, offset)
    bounds = np.array(chunk.bounds, np.uint64)
    backend.apply(base, coding, bounds, rows, list(chunk.changed), content, out)


def _largest_content(chunk: DeltaChunk, words: int, width: int) -> int:
    """A bound on the content that follows from numbers already known."""
    changed = sum(chunk.changed)
    flags = words + 8
    masks = words // 8 + len(chunk.bounds) * 8 + changed * 16
    values = changed * (1 + width // 8) + 32
    return flags + masks + values


def encode_whole(backend: Backend, words: Words, coding: WordCoding) -> WholeChunk:
    """Store words as byte planes, the most significant first; floats with their sign last."""
    if coding.width == 4:
        return WholeChunk(compress(backend, [to_bytes(words, 4).tobytes()]))
    if coding.order is OrderMap.SIGN_MAGNITUDE:
        words = _rotated(words, 1)
    planes = words.view(np.uint8).reshape(words.size, -1)
    return WholeChunk(compress(backend, [plane.tobytes() for plane in planes.T[::-1]]))


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
