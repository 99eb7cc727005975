"""Decoding streams: masks, steps, and the changed words.

Streams are untrusted. The kernels never read or write out of bounds, and report invalid streams by
chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlsparse_store.gpu.kernels.contexts import planes_of
from rlsparse_store.gpu.kernels.split import context_of
from rlsparse_store.gpu.kernels.words import members_of, moved_by, ones, read_bits, words_at

__all__ = [
    "check_dense_masks",
    "count_far_steps",
    "count_low_bits",
    "count_ones",
    "patch_changes",
    "read_steps",
    "set_gaps",
    "sum_gaps",
]


@triton.jit
def _gaps(content, segment, index, mask, escapes_before, ESCAPE: tl.constexpr):
    """Return the gap before each changed word plus 1, clamped to the size of its context."""
    width = tl.load(segment + 2)
    bytes_of = content.to(tl.pointer_type(tl.uint8))
    low = read_bits(content, tl.load(segment + 3) + index * width, mask).to(tl.int64)
    low = low & ((tl.full([], 1, tl.int64) << width) - 1)
    high = tl.load(bytes_of + tl.load(segment + 4) + index, mask=mask, other=0).to(tl.int64)
    escaped = mask & (high == ESCAPE)
    if tl.max(escaped.to(tl.int32), 0) > 0:
        nth = tl.cumsum(escaped.to(tl.int32), 0) - 1 + escapes_before
        bit = 8 * (tl.load(segment + 5) + 4 * nth.to(tl.int64))
        high += tl.where(escaped, read_bits(content, bit, escaped).to(tl.int64), 0)
    words = tl.load(segment + 6)
    return tl.where(mask, tl.minimum((high << width) | low, words) + 1, 0)


@triton.jit
def sum_gaps(
    content,
    segments,
    parts,
    escapes_before,
    sums,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ESCAPE: tl.constexpr,
):
    """Sum the gaps of each part of a context."""
    segment = segments + tl.load(parts + 2 * tl.program_id(0)) * COLUMNS
    index = tl.load(parts + 2 * tl.program_id(0) + 1).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < tl.load(segment + 1)
    escapes = tl.load(escapes_before + tl.program_id(0))
    gap = _gaps(content, segment, index, mask, escapes, ESCAPE)
    tl.store(sums + tl.program_id(0), tl.sum(gap, 0))


@triton.jit
def set_gaps(
    content,
    segments,
    parts,
    escapes_before,
    ranks_before,
    wrong,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ESCAPE: tl.constexpr,
):
    """Set the mask bits that gaps lead to; report contexts that gaps overrun."""
    number = tl.load(parts + 2 * tl.program_id(0))
    segment = segments + number * COLUMNS
    index = tl.load(parts + 2 * tl.program_id(0) + 1).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < tl.load(segment + 1)
    escapes = tl.load(escapes_before + tl.program_id(0))
    gap = _gaps(content, segment, index, mask, escapes, ESCAPE)
    rank = tl.load(ranks_before + tl.program_id(0)) + tl.cumsum(gap, 0) - 1
    is_sound = rank < tl.load(segment + 6)
    bit = tl.load(segment + 7) + rank
    flag = tl.full([SIZE], 1, tl.uint32) << (bit & 31).to(tl.uint32)
    flag = flag.to(tl.int32, bitcast=True)
    tl.atomic_or(content + (bit >> 5), flag, mask=mask & is_sound, sem="relaxed")
    if tl.max((mask & (is_sound == 0)).to(tl.int32), 0) > 0:
        tl.store(wrong + number, 1)


@triton.jit(do_not_specialize=["words"])
def count_ones(content, counts, words, SIZE: tl.constexpr):
    """Count the set bits of each 32-bit word."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    bits = tl.load(content + at, mask=at < words, other=0).to(tl.uint32, bitcast=True)
    tl.store(counts + at, ones(bits).to(tl.int32, bitcast=True), mask=at < words)


@triton.jit
def _ones_before_bit(content, ones_before, bit, mask):
    """Count the set bits before a bit."""
    word = tl.load(content + (bit >> 5), mask=mask, other=0).to(tl.uint32, bitcast=True)
    below = word & ((tl.zeros_like(word) + 1 << (bit & 31).to(tl.uint32)) - 1)
    return tl.load(ones_before + (bit >> 5), mask=mask, other=0) + ones(below).to(tl.int32)


@triton.jit(do_not_specialize=["number"])
def check_dense_masks(content, ones_before, masks, unequal, number, SIZE: tl.constexpr):
    """Report dense masks with a wrong number of set bits.

    ``masks`` has the chunk, first bit, words and expected set bits of each mask.
    """
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < number
    bit = tl.load(masks + 4 * at + 1, mask=inside, other=0)
    end = bit + tl.load(masks + 4 * at + 2, mask=inside, other=0)
    marked = _ones_before_bit(content, ones_before, end, inside)
    marked -= _ones_before_bit(content, ones_before, bit, inside)
    expected = tl.load(masks + 4 * at + 3, mask=inside, other=0)
    tl.store(unequal + at, (marked != expected).to(tl.int32), mask=inside)


@triton.jit
def count_far_steps(content, streams, parts, far, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """Count the far steps of each part of a chunk's steps."""
    stream = streams + tl.load(parts + 2 * tl.program_id(0)) * COLUMNS
    at = tl.load(parts + 2 * tl.program_id(0) + 1) * (SIZE // 4) + tl.arange(0, SIZE // 4)
    bytes_of = content.to(tl.pointer_type(tl.uint8))
    mask = 4 * at < tl.load(stream + 1)
    classes = tl.load(bytes_of + tl.load(stream + 3) + at, mask=mask, other=0).to(tl.uint32)
    tl.store(far + tl.program_id(0), tl.sum(ones(classes & (classes >> 1) & 0x55).to(tl.int32), 0))


@triton.jit
def _exponents(content, stream, nth, mask, WIDTH: tl.constexpr):
    """Read the exponents of far steps, and whether each is within its stream."""
    start = tl.load(stream + 4)
    at = start + (nth >> 1 if WIDTH <= 16 else nth)
    is_there = mask & (at < tl.load(stream + 5))
    byte = tl.load(content.to(tl.pointer_type(tl.uint8)) + at, mask=is_there, other=0).to(tl.int32)
    if WIDTH <= 16:
        byte = (byte >> (4 * (nth & 1)).to(tl.int32)) & 15
    return byte, is_there


@triton.jit
def count_low_bits(
    content,
    streams,
    parts,
    far,
    far_before,
    lows,
    wrong,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Count the low bits of each part's far steps; report chunks with an invalid exponent."""
    number = tl.load(parts + 2 * tl.program_id(0))
    lane = tl.arange(0, SIZE)
    mask = lane < tl.load(far + tl.program_id(0))
    nth = tl.load(far_before + tl.program_id(0)) + lane
    exponent, is_there = _exponents(content, streams + number * COLUMNS, nth, mask, WIDTH)
    is_sound = is_there & (exponent < WIDTH)
    tl.store(lows + tl.program_id(0), tl.sum(tl.where(is_sound, exponent, 0), 0))
    if tl.max((mask & (is_sound == 0)).to(tl.int32), 0) > 0:
        tl.store(wrong + number, 1)


@triton.jit
def read_steps(
    content,
    streams,
    parts,
    far_before,
    lows_before,
    low_bits,
    steps,
    wrong,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Read the steps of each part; report chunks with an invalid step.

    ``low_bits`` has the first bit of each chunk's low bits.
    """
    number = tl.load(parts + 2 * tl.program_id(0))
    stream = streams + number * COLUMNS
    index = tl.load(parts + 2 * tl.program_id(0) + 1).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < tl.load(stream + 1)
    bytes_of = content.to(tl.pointer_type(tl.uint8))
    sign = tl.load(bytes_of + tl.load(stream + 2) + (index >> 3), mask=mask, other=0).to(tl.int32)
    is_negative = ((sign >> (index & 7).to(tl.int32)) & 1) != 0
    kind = tl.load(bytes_of + tl.load(stream + 3) + (index >> 2), mask=mask, other=0).to(tl.int32)
    magnitude = (((kind >> (2 * (index & 3)).to(tl.int32)) & 3) + 1).to(tl.int64)
    is_far = mask & (magnitude == 4)
    if tl.max(is_far.to(tl.int32), 0) > 0:
        far = is_far.to(tl.int64)
        nth = tl.cumsum(far, 0) - far + tl.load(far_before + tl.program_id(0))
        exponent, is_there = _exponents(content, stream, nth, is_far, WIDTH)
        exponent = tl.where(is_there & (exponent < WIDTH), exponent, 0).to(tl.int64)
        low = tl.cumsum(exponent, 0) - exponent + tl.load(lows_before + tl.program_id(0))
        bit = tl.load(low_bits + number) + low
        is_there &= bit + exponent <= 8 * tl.load(stream + 5)
        one = tl.full([SIZE], 1, tl.int64) << exponent
        rest = read_bits(content, bit, is_there).to(tl.int64) & (one - 1)
        magnitude = tl.where(is_far, (one | rest) + 3, magnitude)
        limit = tl.where(is_negative, 1 << (WIDTH - 1), (1 << (WIDTH - 1)) - 1)
        if tl.max((is_far & ((is_there == 0) | (magnitude > limit))).to(tl.int32), 0) > 0:
            tl.store(wrong + number, 1)
    step = tl.where(is_negative, 0 - magnitude, magnitude).to(tl.int32)
    tl.store(steps + tl.load(stream) + index, step, mask=mask)


@triton.jit
def _spread(bits, members):
    """Deposit the lowest bits at the positions of the members, in order.

    Each step moves bits twice as far as the one before (Warren, *Hacker's Delight*, "expand").
    """
    left = (members ^ 0xFFFFFFFF) << 1
    kept = members
    moves = ()
    for power in tl.static_range(5):
        parity = left ^ (left << 1)
        for shift in tl.static_range(1, 5):
            parity = parity ^ (parity << (1 << shift))
        move = parity & kept
        moves = moves + (move,)
        kept = (kept ^ move) | (move >> (1 << power))
        left = left & (parity ^ 0xFFFFFFFF)
    for back in tl.static_range(5):
        move = moves[4 - back]
        bits = (bits & (move ^ 0xFFFFFFFF)) | ((bits << (1 << (4 - back))) & move)
    return bits & members


@triton.jit
def _hits_of(content, ones_before, mask, members, rank):
    """Return the changed members of each group, and the context's changed words before it."""
    nth = rank
    mine = members
    if mask >= 0:
        bit = mask + rank
        is_some = members != 0
        nth = _ones_before_bit(content, ones_before, bit, is_some)
        nth -= _ones_before_bit(content, ones_before, mask, mask >= 0)
        mine = _spread(read_bits(content, bit, is_some), members)
    if mask < -1:
        mine = mine ^ mine
    return mine, nth


@triton.jit
def patch_changes(
    chunks,
    chunk_of_tile,
    marks,
    firsts,
    masks,
    first_steps,
    content,
    ones_before,
    steps,
    flags,
    wrong,
    plane,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    PLANES: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    VERIFIES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write the changed words, or, with ``VERIFIES``, report chunks in which one differs.

    ``masks`` has the first bit of each context's mask, -1 if all words changed, -2 if none did.
    ``first_steps`` has the position of each context's first step. Only changed words are written,
    so that the output may be the base.
    """
    tile = tl.program_id(0)
    number = tl.load(chunk_of_tile + tile)
    chunk = chunks + number * COLUMNS
    lane = tl.arange(0, GROUPS)
    planes = planes_of(marks, plane, tile.to(tl.int64) * GROUPS + lane, PLANES)
    hits = tl.zeros([GROUPS], tl.uint32)
    steps_before = ()
    for c in tl.static_range(CONTEXTS):
        members = members_of(planes, c, PLANES)
        found = ones(members).to(tl.int32)
        rank = tl.cumsum(found, 0) - found + tl.load(firsts + tile * (2 * SLOTS) + c)
        mask = tl.load(masks + number * SLOTS + c)
        mine, nth = _hits_of(content, ones_before, mask, members, rank)
        hits |= mine
        steps_before = steps_before + (nth + tl.load(first_steps + number * SLOTS + c),)
    base = words_at(tl.load(chunk), WIDTH)
    out = words_at(tl.load(chunk + 1), WIDTH)
    first = (tile - tl.load(chunk + 3)) * (GROUPS * GROUP)
    left = hits
    differ = tl.zeros([GROUPS], tl.int32)
    for _ in range(tl.max(ones(hits).to(tl.int32), 0)):
        is_hit = left != 0
        lowest = left & (0 - left)
        context = context_of(planes, lowest, PLANES)
        nth = tl.zeros([GROUPS], tl.int32)
        for c in tl.static_range(CONTEXTS):
            nth = tl.where(context == c, steps_before[c], nth)
        nth += ones(members_of(planes, context, PLANES) & hits & (lowest - 1)).to(tl.int32)
        position = first + lane * GROUP + ones(lowest - 1).to(tl.int32)
        raw = tl.load(base + position, mask=is_hit, other=0)
        step = tl.load(steps + nth, mask=is_hit, other=0)
        after = moved_by(raw, step, WIDTH, ORDER)
        if VERIFIES:
            tuned = tl.load(out + position, mask=is_hit, other=0)
            differ |= (is_hit & (tuned != after)).to(tl.int32)
        else:
            tl.store(out + position, after, mask=is_hit)
        if HAS_ROWS:
            row = (position + tl.load(chunk + 5)) // tl.load(chunk + 4)
            has_flag = is_hit & (tl.load(chunk + 6) >= 0)
            tl.store(flags + tl.load(chunk + 6) + row, 1, mask=has_flag)
        left = left ^ lowest
    if VERIFIES and tl.max(differ, 0) > 0:
        tl.store(wrong + number, 1)
