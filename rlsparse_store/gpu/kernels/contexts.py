"""Finding and counting the contexts of words."""

from __future__ import annotations

import triton
import triton.language as tl

from rlsparse_store.gpu.kernels.words import (
    as_unsigned,
    key_of,
    load_part,
    members_of,
    ones,
    row_of,
)

__all__ = ["count_context_words", "map_contexts", "members_and_hits", "planes_of"]


@triton.jit
def map_contexts(
    chunks,
    chunk_of_tile,
    bounds,
    flags,
    marks,
    plane,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    PLANES: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write each word's context number as bit planes; all bits are set for a word without context.

    ``plane`` is the size of a plane in bytes. A thread packs the bits of eight words.
    """
    part = tl.program_id(0)
    tile = part // PARTS
    number = tl.load(chunk_of_tile + tile)
    chunk = chunks + number * COLUMNS
    start = (tile - tl.load(chunk + 3)) * (PARTS * PART) + (part % PARTS) * PART
    byte = tl.arange(0, PART // 8)
    bit = tl.arange(0, 8)[None, :]
    position = byte[:, None] * 8 + bit
    words = tl.load(chunk + 2)
    inside = position < tl.minimum(words - start, PART).to(tl.int32)
    before = load_part(tl.load(chunk), start, words, position, WIDTH, PART)
    if HAS_ROWS:
        first_flag = tl.load(chunk + 6)
        row = row_of(chunk, start, position, PART)
        live = tl.load(flags + first_flag + row, mask=inside & (first_flag >= 0), other=1)
        inside &= live != 0
    key = key_of(as_unsigned(before, WIDTH), WIDTH, ORDER)
    one = tl.full([PART // 8, 8], 1, tl.int32) << bit
    outside = tl.sum(tl.where(inside, 0, one), 1)
    at = marks + part.to(tl.int64) * (PART // 8) + byte
    # Binary search: the middle one of the remaining bounds decides the next bit.
    left = ()
    for i in tl.static_range((1 << PLANES) - 1):
        bound = tl.load(bounds + number * (1 << PLANES) + i)
        left = left + (bound.to(tl.uint32, bitcast=True),)
    for p in tl.static_range(PLANES - 1, -1, -1):
        is_above = key > left[(1 << p) - 1]
        packed = tl.sum(tl.where(is_above, one, 0), 1) | outside
        tl.store(at + p * plane.to(tl.int64), packed.to(tl.uint8))
        half = ()
        for i in tl.static_range((1 << p) - 1):
            half = half + (tl.where(is_above, left[(1 << p) + i], left[i]),)
        left = half


@triton.jit
def planes_of(marks, plane, at, PLANES: tl.constexpr):
    """Load the bit planes of groups; ``plane`` is the number of groups in a plane."""
    planes = ()
    for p in tl.static_range(PLANES):
        bits = tl.load(marks + p * plane.to(tl.int64) + at)
        planes = planes + (bits.to(tl.uint32, bitcast=True),)
    return planes


@triton.jit
def members_and_hits(members, hits):
    """Count the words of a context (lower 16 bits) and the changed ones (upper 16 bits)."""
    both = ones(members) | (ones(members & hits) << 16)
    return both.to(tl.int32, bitcast=True)


@triton.jit
def count_context_words(
    chunks,
    chunk_of_tile,
    marks,
    bits,
    counts,
    plane,
    CONTEXTS: tl.constexpr,
    PLANES: tl.constexpr,
    HAS_HITS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Count the words, then the changed words, of each tile and context."""
    tile = tl.program_id(0)
    chunk = chunks + tl.load(chunk_of_tile + tile) * COLUMNS
    group = tl.arange(0, GROUPS)
    planes = planes_of(marks, plane, tile.to(tl.int64) * GROUPS + group, PLANES)
    hits = tl.zeros([GROUPS], tl.uint32)
    if HAS_HITS:
        at = tl.load(chunk + 7) + (tile - tl.load(chunk + 3)) * GROUPS + group
        hits = tl.load(bits + at).to(tl.uint32, bitcast=True)
    for c in tl.static_range(CONTEXTS):
        both = tl.sum(members_and_hits(members_of(planes, c, PLANES), hits), 0)
        tl.store(counts + tile * (2 * SLOTS) + c, both & 0xFFFF)
        tl.store(counts + tile * (2 * SLOTS) + SLOTS + c, both >> 16)
