"""The Triton kernels: what touches every word of a chunk, and packing of bits.

Under ``TRITON_INTERPRET=1`` they run on the CPU, as the tests do. Words come as signed integers of
their width, as torch has them; sizes and places fit 32 bits, for a chunk has at most 2^26 words.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "TILE",
    "count_contexts",
    "hash_leaves",
    "pack_bits",
    "patch_words",
    "scatter_changes",
    "survey_words",
    "unpack_bits",
]

TILE = 4096
"""Words of a tile: what a program of most kernels handles. Counts within it fit 16 bits."""

SLOTS = 16
"""Contexts at most; rows of the tables of counts have as many places."""


@triton.jit
def _as_unsigned(word, WIDTH: tl.constexpr):
    """A word as 32 bits without a sign."""
    wide = word.to(tl.int32).to(tl.uint32, bitcast=True)
    if WIDTH < 32:
        wide = wide & ((1 << WIDTH) - 1)
    return wide


@triton.jit
def _ordered(word, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """The order map, which is its own inverse."""
    if ORDER == 2:
        low = (1 << (WIDTH - 1)) - 1
        word = tl.where(word > low, word ^ low, word)
    return word


@triton.jit
def _key(word, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """What a word is classed by."""
    low = (1 << (WIDTH - 1)) - 1
    if ORDER == 2:
        word = word & low
    if ORDER == 1:
        word = tl.where(word > low, (word ^ 0xFFFFFFFF) & low, word)
    return word


@triton.jit
def _context(
    key,
    place,
    inside,
    bounds,
    active,
    length,
    offset,
    CONTEXTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """The context of each word; ``CONTEXTS`` for a word in none."""
    context = tl.zeros_like(place)
    for c in tl.static_range(CONTEXTS):
        bound = tl.load(bounds + c).to(tl.uint32, bitcast=True)
        context += (key > bound).to(tl.int32)
    if HAS_ROWS:
        live = tl.load(active + (place + offset) // length, mask=inside, other=0)
        inside = inside & (live != 0)
    return tl.where(inside, context, CONTEXTS)


@triton.jit
def survey_words(
    base,
    tuned,
    numbers,
    top_keys,
    words,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Of each tile, how many words differ, and the largest key of a base word that does."""
    tile = tl.program_id(0)
    place = tile.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < words
    before = _as_unsigned(tl.load(base + place, mask=inside, other=0), WIDTH)
    after = _as_unsigned(tl.load(tuned + place, mask=inside, other=0), WIDTH)
    differs = before != after
    key = tl.where(differs, _key(before, WIDTH, ORDER), 0).to(tl.int64)
    tl.store(numbers + tile, tl.sum(differs.to(tl.int32)))
    tl.store(top_keys + tile, tl.max(key, 0))


@triton.jit
def count_contexts(
    base,
    tuned,
    bounds,
    active,
    counts,
    changed,
    words,
    length,
    offset,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_TUNED: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Of each tile, the words of each context and, where tuned words are given, the changed ones.

    Four counters of 16 bits are added up at once.
    """
    tile = tl.program_id(0)
    place = tile * SIZE + tl.arange(0, SIZE)
    inside = place < words
    before = _as_unsigned(tl.load(base + place, mask=inside, other=0), WIDTH)
    key = _key(before, WIDTH, ORDER)
    context = _context(key, place, inside, bounds, active, length, offset, CONTEXTS, HAS_ROWS)
    differs = inside
    if HAS_TUNED:
        after = _as_unsigned(tl.load(tuned + place, mask=inside, other=0), WIDTH)
        differs = before != after
    one = tl.full([SIZE], 1, tl.int64) << ((context % 4) * 16).to(tl.int64)
    for group in tl.static_range((CONTEXTS + 3) // 4):
        mine = (context // 4 == group) & (context < CONTEXTS)
        all_words = tl.sum(tl.where(mine, one, 0))
        hits = tl.sum(tl.where(mine & differs, one, 0)) if HAS_TUNED else all_words
        for slot in tl.static_range(4):
            at = tile * 16 + group * 4 + slot
            tl.store(counts + at, ((all_words >> (slot * 16)) & 0xFFFF).to(tl.int32))
            if HAS_TUNED:
                tl.store(changed + at, ((hits >> (slot * 16)) & 0xFFFF).to(tl.int32))


@triton.jit
def _rank(context, counted, SIZE: tl.constexpr, CONTEXTS: tl.constexpr):
    """How many words of the tile before this one are counted for the same context."""
    shift = ((context % 4) * 16).to(tl.int64)
    one = tl.full([SIZE], 1, tl.int64) << shift
    rank = tl.zeros([SIZE], tl.int64)
    for group in tl.static_range((CONTEXTS + 3) // 4):
        mine = (context // 4 == group) & counted
        before = tl.cumsum(tl.where(mine, one, 0), 0)
        rank = tl.where(mine, ((before >> shift) & 0xFFFF) - 1, rank)
    return rank.to(tl.int32)


@triton.jit
def scatter_changes(
    base,
    tuned,
    bounds,
    active,
    first_ranks,
    first_places,
    ranks,
    steps,
    words,
    length,
    offset,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Write the rank and the step of each changed word, by context and then by position."""
    tile = tl.program_id(0)
    place = tile * SIZE + tl.arange(0, SIZE)
    inside = place < words
    before = _as_unsigned(tl.load(base + place, mask=inside, other=0), WIDTH)
    after = _as_unsigned(tl.load(tuned + place, mask=inside, other=0), WIDTH)
    key = _key(before, WIDTH, ORDER)
    context = _context(key, place, inside, bounds, active, length, offset, CONTEXTS, HAS_ROWS)
    member = context < CONTEXTS
    hit = member & (before != after)
    rank = _rank(context, member, SIZE, CONTEXTS)
    nth = _rank(context, hit, SIZE, CONTEXTS)
    table = tile * 16 + context
    rank += tl.load(first_ranks + table, mask=member, other=0)
    nth += tl.load(first_places + table, mask=member, other=0)
    step = _ordered(after, WIDTH, ORDER) - _ordered(before, WIDTH, ORDER)
    step = step.to(tl.int32, bitcast=True)
    step = (step << (32 - WIDTH)) >> (32 - WIDTH)
    tl.store(ranks + nth, rank, mask=hit)
    tl.store(steps + nth, step, mask=hit)


@triton.jit
def _ones(bits):
    """How many of 32 bits are set."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101) >> 24


@triton.jit
def patch_words(
    base,
    out,
    bounds,
    active,
    first_ranks,
    mask_starts,
    masks,
    changed_before,
    steps,
    touched,
    words,
    length,
    offset,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Write the tuned words: each word finds its bit in its context's mask, and its step behind.

    ``out`` may be ``base``: each program reads its words before it writes them.
    """
    tile = tl.program_id(0)
    place = tile * SIZE + tl.arange(0, SIZE)
    inside = place < words
    raw = tl.load(base + place, mask=inside, other=0)
    before = _as_unsigned(raw, WIDTH)
    key = _key(before, WIDTH, ORDER)
    context = _context(key, place, inside, bounds, active, length, offset, CONTEXTS, HAS_ROWS)
    member = context < CONTEXTS
    rank = _rank(context, member, SIZE, CONTEXTS)
    rank += tl.load(first_ranks + tile * 16 + context, mask=member, other=0)
    at = tl.load(mask_starts + context, mask=member, other=0) + (rank >> 5)
    bits = tl.load(masks + at, mask=member, other=0).to(tl.uint32, bitcast=True)
    bit = (rank & 31).to(tl.uint32)
    hit = member & (((bits >> bit) & 1) != 0)
    below = tl.full([SIZE], 1, tl.uint32) << bit
    nth = tl.load(changed_before + at, mask=hit, other=0)
    nth += _ones(bits & (below - 1)).to(tl.int32)
    step = tl.load(steps + nth, mask=hit, other=0).to(tl.uint32, bitcast=True)
    after = _ordered(before, WIDTH, ORDER) + step
    if WIDTH < 32:
        after = after & ((1 << WIDTH) - 1)
    after = _ordered(after, WIDTH, ORDER).to(tl.int32, bitcast=True).to(raw.dtype)
    tl.store(out + place, tl.where(hit, after, raw), mask=inside)
    if HAS_ROWS:
        tl.store(touched + (place + offset) // length, 1, mask=hit)


@triton.jit
def pack_bits(values, out, count, nbytes, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """The low ``WIDTH`` bits of each value, one behind the other, least significant first."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    packed = tl.zeros([SIZE], tl.int32)
    for bit in tl.static_range(8):
        place = at * 8 + bit
        field = place // WIDTH
        value = tl.load(values + field, mask=field < count, other=0).to(tl.int32)
        packed |= ((value >> (place % WIDTH).to(tl.int32)) & 1) << bit
    tl.store(out + at, packed.to(tl.uint8), mask=at < nbytes)


@triton.jit
def unpack_bits(packed, out, count, nbytes, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """The inverse of :func:`pack_bits`."""
    field = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    start = field * WIDTH
    value = tl.zeros([SIZE], tl.int64)
    for part in tl.static_range((WIDTH + 14) // 8):
        at = start // 8 + part
        byte = tl.load(packed + at, mask=(field < count) & (at < nbytes), other=0)
        value |= byte.to(tl.int64) << (part * 8)
    value = (value >> (start % 8)) & ((1 << WIDTH) - 1)
    tl.store(out + field, value.to(tl.int32), mask=field < count)


@triton.jit
def _folded(left, right):
    """The two halves of a product of 64 by 64 bits, exclusively ored."""
    low = 0xFFFFFFFF
    ll = (left & low) * (right & low)
    lh = (left & low) * (right >> 32)
    hl = (left >> 32) * (right & low)
    middle = (ll >> 32) + (lh & low) + (hl & low)
    high = (left >> 32) * (right >> 32) + (lh >> 32) + (hl >> 32) + (middle >> 32)
    return high ^ (left * right)


@triton.jit
def _absorb(sums, word, other, secret, mask):
    """The lanes after a stripe."""
    value = tl.load(word, mask=mask, other=0).to(tl.uint64, bitcast=True)
    swapped = tl.load(other, mask=mask, other=0).to(tl.uint64, bitcast=True)
    keyed = value ^ tl.load(secret).to(tl.uint64, bitcast=True)
    return sums + swapped + (keyed & 0xFFFFFFFF) * (keyed >> 32)


@triton.jit
def hash_leaves(
    data,
    secret,
    start,
    out,
    leaves,
    LEAVES: tl.constexpr,
):
    """XXH3 of leaves of 16384 bytes: eight lanes each, over 16 blocks of 16 stripes of 64 bytes.

    ``secret`` has eight words for each of the 16 stripes, then those of scrambling, of the last
    stripe and of merging; ``start`` the lanes' first values.
    """
    leaf = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)[:, None]
    lane = tl.arange(0, 8)[None, :]
    mask = (leaf < leaves) & (lane < 8)
    word = data + leaf.to(tl.int64) * 2048 + lane
    other = data + leaf.to(tl.int64) * 2048 + (lane ^ 1)
    lanes = tl.load(start + lane).to(tl.uint64, bitcast=True)
    sums = tl.zeros([LEAVES, 8], tl.uint64) + lanes
    for block in range(15):
        for stripe in range(16):
            at = block * 128 + stripe * 8
            sums = _absorb(sums, word + at, other + at, secret + stripe * 8 + lane, mask)
        sums = sums ^ (sums >> 47)
        sums = sums ^ tl.load(secret + 128 + lane).to(tl.uint64, bitcast=True)
        sums = sums * 0x9E3779B1
    for stripe in range(15):
        at = 15 * 128 + stripe * 8
        sums = _absorb(sums, word + at, other + at, secret + stripe * 8 + lane, mask)
    sums = _absorb(sums, word + 2040, other + 2040, secret + 136 + lane, mask)
    sums = sums ^ tl.load(secret + 144 + lane).to(tl.uint64, bitcast=True)
    # Lanes are multiplied in pairs.
    left, right = tl.split(tl.reshape(sums, [LEAVES, 4, 2]))
    folded = tl.sum(_folded(left, right), 1)
    length = tl.full([LEAVES], 16384, tl.uint64) * tl.full([LEAVES], 0x9E3779B185EBCA87, tl.uint64)
    hashed = folded + length
    hashed = hashed ^ (hashed >> 37)
    hashed = hashed * tl.full([LEAVES], 0x165667919E3779F9, tl.uint64)
    hashed = hashed ^ (hashed >> 32)
    row = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)
    tl.store(out + row, hashed.to(tl.int64, bitcast=True), mask=row < leaves)
