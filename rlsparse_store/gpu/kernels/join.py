"""From streams to words: where changed words are, what their steps are, and writing them.

Streams are not trusted: nothing is read or written out of bounds, whatever they say, and what is
wrong with a chunk's is noted for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlsparse_store.gpu.kernels.contexts import planes_of
from rlsparse_store.gpu.kernels.split import context_of
from rlsparse_store.gpu.kernels.words import members_of, moved_by, ones, read_bits, words_at

__all__ = [
    "compare_marks",
    "count_ones",
    "patch_changes",
    "read_steps",
    "set_gaps",
    "sum_gaps",
    "tally_far",
    "tally_lows",
]


@triton.jit
def _gaps(content, segment, index, mask, escapes_before, ESCAPE: tl.constexpr):
    """The gap before each changed word, and one more; nothing is larger than its context."""
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
    """How far the gaps of each part of a context reach."""
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
    """Set the bits that gaps lead to; say of which context one leads beyond it."""
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
    """How many bits of each word of 32 are set."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    bits = tl.load(content + at, mask=at < words, other=0).to(tl.uint32, bitcast=True)
    tl.store(counts + at, ones(bits).to(tl.int32, bitcast=True), mask=at < words)


@triton.jit
def _ones_before_bit(content, ones_before, bit, mask):
    """How many bits are set before one."""
    word = tl.load(content + (bit >> 5), mask=mask, other=0).to(tl.uint32, bitcast=True)
    below = word & ((tl.zeros_like(word) + 1 << (bit & 31).to(tl.uint32)) - 1)
    return tl.load(ones_before + (bit >> 5), mask=mask, other=0) + ones(below).to(tl.int32)


@triton.jit(do_not_specialize=["number"])
def compare_marks(content, ones_before, masks, unequal, number, SIZE: tl.constexpr):
    """Say which masks of bits do not mark as many words as they should.

    ``masks`` has of each: its chunk, its first bit, its words, how many it should mark.
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
def tally_far(content, streams, parts, far, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """Count the far steps of each part of a chunk's."""
    stream = streams + tl.load(parts + 2 * tl.program_id(0)) * COLUMNS
    at = tl.load(parts + 2 * tl.program_id(0) + 1) * (SIZE // 4) + tl.arange(0, SIZE // 4)
    bytes_of = content.to(tl.pointer_type(tl.uint8))
    mask = 4 * at < tl.load(stream + 1)
    classes = tl.load(bytes_of + tl.load(stream + 3) + at, mask=mask, other=0).to(tl.uint32)
    tl.store(far + tl.program_id(0), tl.sum(ones(classes & (classes >> 1) & 0x55).to(tl.int32), 0))


@triton.jit
def _exponents(content, stream, nth, mask, WIDTH: tl.constexpr):
    """The exponents of far steps, and whether each is there."""
    start = tl.load(stream + 4)
    at = start + (nth >> 1 if WIDTH <= 16 else nth)
    is_there = mask & (at < tl.load(stream + 5))
    byte = tl.load(content.to(tl.pointer_type(tl.uint8)) + at, mask=is_there, other=0).to(tl.int32)
    if WIDTH <= 16:
        byte = (byte >> (4 * (nth & 1)).to(tl.int32)) & 15
    return byte, is_there


@triton.jit
def tally_lows(
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
    """What the low bits of each part's far steps take; say of which chunk an exponent is none."""
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
    """Read the steps of each part; say of which chunk one is none.

    ``low_bits`` has the bit of each chunk at which they begin.
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
    """The lowest bits, moved to where the members are, in order.

    Each step moves by twice as much as the one before (Warren, *Hacker's Delight*, "expand").
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
    """Which members of groups changed, and how many of their context did before each group."""
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
    PROVES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write the changed words; or, to prove them, say of which chunk one differs.

    ``masks`` has the bit at which each context's mask begins, -1 if all of its words changed and -2
    if none did; ``first_steps`` the place of its first step. What lies there may be the base: only
    changed words are written.
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
        place = first + lane * GROUP + ones(lowest - 1).to(tl.int32)
        raw = tl.load(base + place, mask=is_hit, other=0)
        step = tl.load(steps + nth, mask=is_hit, other=0)
        after = moved_by(raw, step, WIDTH, ORDER)
        if PROVES:
            there = tl.load(out + place, mask=is_hit, other=0)
            differ |= (is_hit & (there != after)).to(tl.int32)
        else:
            tl.store(out + place, after, mask=is_hit)
        if HAS_ROWS:
            row = (place + tl.load(chunk + 5)) // tl.load(chunk + 4)
            has_flag = is_hit & (tl.load(chunk + 6) >= 0)
            tl.store(flags + tl.load(chunk + 6) + row, 1, mask=has_flag)
        left = left ^ lowest
    if PROVES and tl.max(differ, 0) > 0:
        tl.store(wrong + number, 1)
