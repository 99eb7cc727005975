"""Encoding streams: ranks and steps of changed words, masks and values."""

from __future__ import annotations

import triton
import triton.language as tl

from rlsparse_store.gpu.kernels.contexts import members_and_hits, planes_of
from rlsparse_store.gpu.kernels.words import (
    bit_length,
    magnitude_of,
    members_of,
    ones,
    or_bits,
    step_of,
    words_at,
)

__all__ = [
    "context_of",
    "count_escapes",
    "count_steps",
    "scatter_changes",
    "write_masks",
    "write_steps",
]


@triton.jit
def context_of(planes, lowest, PLANES: tl.constexpr):
    """Return the context of the word whose bit is set."""
    context = tl.zeros_like(lowest)
    for plane in tl.static_range(PLANES):
        context |= tl.where((planes[plane] & lowest) != 0, 1 << plane, 0).to(tl.uint32)
    return context


@triton.jit
def scatter_changes(
    chunks,
    chunk_of_tile,
    marks,
    bits,
    firsts,
    ranks,
    steps,
    plane,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    PLANES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write the rank and the step of each changed word, by chunk, context and position.

    Each group loops over its changed words, so that unchanged words cost nothing. ``firsts`` has
    the rank of each tile's first word of each context, then the position of the first changed one.
    """
    tile = tl.program_id(0)
    chunk = chunks + tl.load(chunk_of_tile + tile) * COLUMNS
    lane = tl.arange(0, GROUPS)
    group = (tile - tl.load(chunk + 3)) * GROUPS + lane
    planes = planes_of(marks, plane, tile.to(tl.int64) * GROUPS + lane, PLANES)
    hits = tl.load(bits + tl.load(chunk + 7) + group).to(tl.uint32, bitcast=True)
    # Clear the bits of words without context: those of the next chunk in the same tile.
    hits &= members_of(planes, (1 << PLANES) - 1, PLANES) ^ 0xFFFFFFFF
    ranks_before = ()
    positions_before = ()
    for c in tl.static_range(CONTEXTS):
        both = members_and_hits(members_of(planes, c, PLANES), hits)
        earlier = tl.cumsum(both, 0) - both
        first = tl.load(firsts + tile * (2 * SLOTS) + c)
        ranks_before = ranks_before + ((earlier & 0xFFFF) + first,)
        first = tl.load(firsts + tile * (2 * SLOTS) + SLOTS + c)
        positions_before = positions_before + ((earlier >> 16) + first,)
    base = words_at(tl.load(chunk), WIDTH)
    tuned = words_at(tl.load(chunk + 1), WIDTH)
    left = hits
    for _ in range(tl.max(ones(hits).to(tl.int32), 0)):
        is_hit = left != 0
        lowest = left & (0 - left)
        below = lowest - 1
        context = context_of(planes, lowest, PLANES)
        rank = tl.zeros([GROUPS], tl.int32)
        nth = tl.zeros([GROUPS], tl.int32)
        for c in tl.static_range(CONTEXTS):
            rank = tl.where(context == c, ranks_before[c], rank)
            nth = tl.where(context == c, positions_before[c], nth)
        ahead = members_of(planes, context, PLANES) & below
        rank += ones(ahead).to(tl.int32)
        nth += ones(ahead & hits).to(tl.int32)
        position = group * GROUP + ones(below).to(tl.int32)
        old = tl.load(base + position, mask=is_hit, other=0)
        new = tl.load(tuned + position, mask=is_hit, other=0)
        tl.store(ranks + nth, rank, mask=is_hit)
        tl.store(steps + nth, step_of(old, new, WIDTH, ORDER), mask=is_hit)
        left = left ^ lowest


@triton.jit
def _high_of_gaps(ranks, segment, index, mask):
    """Return the gap before each changed word, and its part above the low bits."""
    at = ranks + tl.load(segment) + index
    rank = tl.load(at, mask=mask, other=0)
    before = tl.load(at - 1, mask=mask & (index > 0), other=-1)
    gap = rank - before - 1
    return gap, gap >> tl.load(segment + 2).to(tl.int32)


@triton.jit
def count_escapes(
    ranks, segments, parts, escapes, SIZE: tl.constexpr, COLUMNS: tl.constexpr, ESCAPE: tl.constexpr
):
    """Count the gaps of each part of a mask whose high part does not fit in a byte."""
    segment = segments + tl.load(parts + 2 * tl.program_id(0)) * COLUMNS
    index = tl.load(parts + 2 * tl.program_id(0) + 1) * SIZE + tl.arange(0, SIZE)
    mask = index < tl.load(segment + 1)
    if tl.load(segment + 2) >= 0:
        _, high = _high_of_gaps(ranks, segment, index, mask)
        escaped = mask & (high >= ESCAPE)
        tl.store(escapes + tl.program_id(0), tl.sum(escaped.to(tl.int32), 0))


@triton.jit
def write_masks(
    ranks,
    segments,
    parts,
    escapes_before,
    content,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ESCAPE: tl.constexpr,
):
    """Write the masks of contexts, dense or as gaps, to zeroed memory."""
    segment = segments + tl.load(parts + 2 * tl.program_id(0)) * COLUMNS
    index = tl.load(parts + 2 * tl.program_id(0) + 1) * SIZE + tl.arange(0, SIZE)
    mask = index < tl.load(segment + 1)
    width = tl.load(segment + 2)
    first_bit = tl.load(segment + 3)
    if width < 0:
        rank = tl.load(ranks + tl.load(segment) + index, mask=mask, other=0)
        bit = first_bit + rank
        flag = tl.full([SIZE], 1, tl.uint32) << (bit & 31).to(tl.uint32)
        word = content + (bit >> 5)
        tl.atomic_or(word, flag.to(tl.int32, bitcast=True), mask=mask, sem="relaxed")
    else:
        gap, high = _high_of_gaps(ranks, segment, index, mask)
        low = (gap - (high << width.to(tl.int32))).to(tl.uint32, bitcast=True)
        or_bits(content, first_bit + index * width, low, mask)
        bytes_of = content.to(tl.pointer_type(tl.uint8))
        at = bytes_of + tl.load(segment + 4) + index
        tl.store(at, tl.minimum(high, ESCAPE).to(tl.uint8), mask=mask)
        escaped = mask & (high >= ESCAPE)
        if tl.max(escaped.to(tl.int32), 0) > 0:
            nth = tl.cumsum(escaped.to(tl.int32), 0) - 1
            nth += tl.load(escapes_before + tl.program_id(0))
            at = bytes_of + tl.load(segment + 5) + 4 * nth
            for byte in tl.static_range(4):
                value = ((high - ESCAPE) >> (8 * byte)) & 0xFF
                tl.store(at + byte, value.to(tl.uint8), mask=escaped)


@triton.jit
def _far_steps(steps, stream, first, SIZE: tl.constexpr):
    """Return the steps of a part; for far ones also |step| - 3 and the bits below its leading 1."""
    index = first + tl.arange(0, SIZE)
    step = tl.load(steps + tl.load(stream) + index, mask=index < tl.load(stream + 1), other=0)
    magnitude = magnitude_of(step)
    is_far = magnitude > 3
    excess = tl.where(is_far, magnitude - 3, 1)
    return step, magnitude, is_far, excess, bit_length(excess) - 1


@triton.jit
def count_steps(
    steps,
    streams,
    parts,
    far,
    lows,
    kinds,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Count the far steps and their low bits in each part, and the steps by kind in each chunk.

    The kinds are -1, -2, -3, <= -4, 1, 2, 3, >= 4.
    """
    number = tl.load(parts + 2 * tl.program_id(0))
    stream = streams + number * COLUMNS
    first = tl.load(parts + 2 * tl.program_id(0) + 1) * SIZE
    step, magnitude, is_far, _, exponent = _far_steps(steps, stream, first, SIZE)
    tl.store(far + tl.program_id(0), tl.sum(is_far.to(tl.int32), 0))
    tl.store(lows + tl.program_id(0), tl.sum(tl.where(is_far, exponent, 0).to(tl.int32), 0))
    # One int64 sum adds four 16-bit counters.
    kind = tl.minimum(magnitude - 1, 3).to(tl.int64)
    one = tl.where(magnitude > 0, tl.full([SIZE], 1, tl.int64) << (16 * kind), 0)
    below = tl.sum(tl.where(step < 0, one, 0), 0)
    above = tl.sum(tl.where(step > 0, one, 0), 0)
    for k in tl.static_range(4):
        at = kinds + number * 8 + k
        tl.atomic_add(at, ((below >> (16 * k)) & 0xFFFF).to(tl.int32), sem="relaxed")
        tl.atomic_add(at + 4, ((above >> (16 * k)) & 0xFFFF).to(tl.int32), sem="relaxed")


@triton.jit
def write_steps(
    steps,
    streams,
    parts,
    far_before,
    lows_before,
    content,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write signs, classes, exponents and low bits of steps, to zeroed memory."""
    stream = streams + tl.load(parts + 2 * tl.program_id(0)) * COLUMNS
    first = tl.load(parts + 2 * tl.program_id(0) + 1).to(tl.int64) * SIZE
    number = tl.load(stream + 1)
    bytes_of = content.to(tl.pointer_type(tl.uint8))
    # Signs and classes have a fixed number of bits per step: eight steps fill whole bytes.
    byte = tl.arange(0, SIZE // 8)
    bit = tl.arange(0, 8)[None, :]
    index = first + byte[:, None] * 8 + bit
    step = tl.load(steps + tl.load(stream) + index, mask=index < number, other=1)
    signs = tl.sum((step < 0).to(tl.int32) << bit, 1)
    octet = first // 8 + byte
    at = bytes_of + tl.load(stream + 2) + octet
    tl.store(at, signs.to(tl.uint8), mask=octet * 8 < number)
    magnitude = magnitude_of(step)
    classes = tl.sum(tl.minimum(magnitude - 1, 3).to(tl.int32) << (2 * bit), 1)
    at = bytes_of + tl.load(stream + 3) + 2 * octet
    tl.store(at, (classes & 0xFF).to(tl.uint8), mask=octet * 8 < number)
    tl.store(at + 1, (classes >> 8).to(tl.uint8), mask=octet * 8 + 4 < number)

    _, _, is_far, excess, exponent = _far_steps(steps, stream, first, SIZE)
    if tl.max(is_far.to(tl.int32), 0) > 0:
        # One prefix sum counts far steps (upper half) and their low bits (lower half).
        one = (tl.full([SIZE], 1, tl.int64) << 32) | exponent.to(tl.int64)
        both = tl.where(is_far, one, 0)
        earlier = tl.cumsum(both, 0) - both
        nth = (earlier >> 32) + tl.load(far_before + tl.program_id(0))
        low = (earlier & 0xFFFFFFFF) + tl.load(lows_before + tl.program_id(0))
        exponents = tl.load(stream + 4)
        if WIDTH <= 16:
            or_bits(content, 8 * exponents + 4 * nth, exponent, is_far)
        else:
            tl.store(bytes_of + exponents + nth, exponent.to(tl.uint8), mask=is_far)
        rest = excess - (tl.full([SIZE], 1, tl.uint32) << exponent)
        or_bits(content, tl.load(stream + 5) + low, rest, is_far)
