"""The Triton kernels: what touches every word of a chunk, and packing of bits.

Under ``TRITON_INTERPRET=1`` they run on the CPU, as the tests do. Words come as signed integers of
their width, as torch has them; sizes and places fit 32 bits, for a chunk has at most 2^26 words.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "GROUPS",
    "TILE",
    "count_contexts",
    "hash_leaves",
    "mark_contexts",
    "pack_bits",
    "patch_words",
    "scatter_changes",
    "survey_words",
    "tally_marks",
    "unpack_bits",
]

TILE = 4096
"""Words of a tile: what a program of most kernels handles. Counts within it fit 16 bits."""

GROUPS = 512
"""Groups of 32 words that a program handles once contexts are marked. Counts within them fit 16
bits, so two go into one counter."""

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
    start = tile.to(tl.int64) * SIZE
    place = tl.arange(0, SIZE)
    inside = place < tl.minimum(words - start, SIZE).to(tl.int32)
    before = tl.load(base + start + place, mask=inside, other=0)
    after = tl.load(tuned + start + place, mask=inside, other=0)
    differs = before != after
    key = tl.where(differs, _key(_as_unsigned(before, WIDTH), WIDTH, ORDER), 0)
    tl.store(numbers + tile, tl.sum(differs.to(tl.int32)))
    tl.store(top_keys + tile, tl.max(key, 0).to(tl.int32, bitcast=True))


@triton.jit
def count_contexts(
    base,
    bounds,
    active,
    counts,
    words,
    length,
    offset,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Of each tile, the words of each context."""
    tile = tl.program_id(0)
    place = tile * SIZE + tl.arange(0, SIZE)
    inside = place < words
    word = tl.load(base + place, mask=inside, other=0)
    key = _key(_as_unsigned(word, WIDTH), WIDTH, ORDER)
    if HAS_ROWS:
        live = tl.load(active + (place + offset) // length, mask=inside, other=0)
        inside = inside & (live != 0)
    one = tl.where(inside, 1, 0)
    below = 0
    for c in tl.static_range(CONTEXTS):
        bound = tl.load(bounds + c).to(tl.uint32, bitcast=True)
        up_to = tl.sum(tl.where(key <= bound, one, 0))
        tl.store(counts + tile * 16 + c, up_to - below)
        below = up_to


@triton.jit
def mark_contexts(
    base,
    tuned,
    bounds,
    active,
    marks,
    words,
    plane,
    length,
    offset,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """A bit for each word of each context, and in one plane more for each that changed in any.

    Words are looked at eight at a time, whose bits are a byte, so that no thread needs another's;
    what reads the planes takes 32 bits of them.
    """
    tile = tl.program_id(0)
    bit = tl.arange(0, 8)[None, :]
    byte = tl.arange(0, SIZE // 8)
    start = tile * SIZE
    place = byte[:, None] * 8 + bit
    inside = place < words - start
    before = tl.load(base + start + place, mask=inside, other=0)
    after = tl.load(tuned + start + place, mask=inside, other=0)
    key = _key(_as_unsigned(before, WIDTH), WIDTH, ORDER)
    if HAS_ROWS:
        live = tl.load(active + (start + place + offset) // length, mask=inside, other=0)
        inside = inside & (live != 0)
    one = tl.where(inside, tl.full([SIZE // 8, 8], 1, tl.int32) << bit, 0)
    changed = tl.sum(tl.where(before != after, one, 0), 1)
    at = marks + tile * (SIZE // 8) + byte
    below = tl.zeros([SIZE // 8], tl.int32)
    for c in tl.static_range(CONTEXTS):
        bound = tl.load(bounds + c).to(tl.uint32, bitcast=True)
        up_to = tl.sum(tl.where(key <= bound, one, 0), 1)
        tl.store(at + c * plane, (up_to ^ below).to(tl.uint8))
        below = up_to
    tl.store(at + CONTEXTS * plane, (changed & below).to(tl.uint8))


@triton.jit
def _ones(bits):
    """How many of 32 bits are set."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101) >> 24


@triton.jit
def _members_and_hits(members, hits):
    """How many words of a context there are, and in the upper half how many of them changed."""
    both = _ones(members) | (_ones(members & hits) << 16)
    return both.to(tl.int32, bitcast=True)


@triton.jit
def tally_marks(marks, counts, changed, plane, CONTEXTS: tl.constexpr, SIZE: tl.constexpr):
    """Of each tile of ``32 * SIZE`` words, the words of each context and the changed ones."""
    tile = tl.program_id(0)
    group = tile * SIZE + tl.arange(0, SIZE)
    inside = group < plane
    hits = tl.load(marks + CONTEXTS * plane + group, mask=inside, other=0)
    hits = hits.to(tl.uint32, bitcast=True)
    for c in tl.static_range(CONTEXTS):
        members = tl.load(marks + c * plane + group, mask=inside, other=0)
        both = tl.sum(_members_and_hits(members.to(tl.uint32, bitcast=True), hits))
        tl.store(counts + tile * 16 + c, both & 0xFFFF)
        tl.store(changed + tile * 16 + c, both >> 16)


@triton.jit
def _rank(context, member, SIZE: tl.constexpr, CONTEXTS: tl.constexpr):
    """How many words of the tile before this one are of the same context.

    Four counters of 16 bits are added up at once.
    """
    shift = ((context % 4) * 16).to(tl.int64)
    one = tl.full([SIZE], 1, tl.int64) << shift
    rank = tl.zeros([SIZE], tl.int64)
    for group in tl.static_range((CONTEXTS + 3) // 4):
        mine = (context // 4 == group) & member
        before = tl.cumsum(tl.where(mine, one, 0), 0)
        rank = tl.where(mine, ((before >> shift) & 0xFFFF) - 1, rank)
    return rank.to(tl.int32)


@triton.jit
def scatter_changes(
    base,
    tuned,
    marks,
    first_ranks,
    first_places,
    ranks,
    steps,
    plane,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    CONTEXTS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Write the rank and the step of each changed word, by context and then by position.

    Each of ``SIZE`` groups of 32 words takes its changed words one by one, so that what is done
    for a changed word is not done for the others.
    """
    tile = tl.program_id(0)
    group = tile * SIZE + tl.arange(0, SIZE)
    inside = group < plane
    left = tl.load(marks + CONTEXTS * plane + group, mask=inside, other=0)
    left = left.to(tl.uint32, bitcast=True)
    hits = left
    planes = ()
    ranks_before = ()
    places_before = ()
    for c in tl.static_range(CONTEXTS):
        members = tl.load(marks + c * plane + group, mask=inside, other=0)
        members = members.to(tl.uint32, bitcast=True)
        both = _members_and_hits(members, hits)
        earlier = tl.cumsum(both, 0) - both
        planes = planes + (members,)
        first = tl.load(first_ranks + tile * 16 + c)
        ranks_before = ranks_before + ((earlier & 0xFFFF) + first,)
        first = tl.load(first_places + tile * 16 + c)
        places_before = places_before + ((earlier >> 16) + first,)
    for _ in range(tl.max(_ones(hits).to(tl.int32))):
        is_hit = left != 0
        lowest = left & (0 - left)
        below = lowest - 1
        members = tl.zeros([SIZE], tl.uint32)
        rank = tl.zeros([SIZE], tl.int32)
        nth = tl.zeros([SIZE], tl.int32)
        for c in tl.static_range(CONTEXTS):
            mine = (planes[c] & lowest) != 0
            members = tl.where(mine, planes[c], members)
            rank = tl.where(mine, ranks_before[c], rank)
            nth = tl.where(mine, places_before[c], nth)
        rank += _ones(members & below).to(tl.int32)
        nth += _ones(members & hits & below).to(tl.int32)
        place = group * 32 + _ones(below).to(tl.int32)
        before = _as_unsigned(tl.load(base + place, mask=is_hit, other=0), WIDTH)
        after = _as_unsigned(tl.load(tuned + place, mask=is_hit, other=0), WIDTH)
        step = _ordered(after, WIDTH, ORDER) - _ordered(before, WIDTH, ORDER)
        step = step.to(tl.int32, bitcast=True)
        step = (step << (32 - WIDTH)) >> (32 - WIDTH)
        tl.store(ranks + nth, rank, mask=is_hit)
        tl.store(steps + nth, step, mask=is_hit)
        left = left ^ lowest


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
