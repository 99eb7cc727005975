"""XXH3 of leaves: many of them at a time, eight lanes each."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["hash_leaves"]


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


@triton.jit(do_not_specialize=["leaves"])
def hash_leaves(
    addresses,
    secret,
    start,
    out,
    leaves,
    LEAVES: tl.constexpr,
):
    """XXH3 of leaves of 16384 bytes, wherever they lie.

    Eight lanes each, over 16 blocks of 16 stripes of 64 bytes. A block's stripes are unrolled, so
    that their loads are under way together. ``secret`` has eight words for each of the 16 stripes,
    then those of scrambling, of the last stripe and of merging; ``start`` the lanes' first values.
    """
    leaf = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)[:, None]
    lane = tl.arange(0, 8)[None, :]
    mask = (leaf < leaves) & (lane < 8)
    address = tl.load(addresses + leaf, mask=leaf < leaves, other=0)
    first = address.to(tl.pointer_type(tl.int64))
    word = first + lane
    other = first + (lane ^ 1)
    lanes = tl.load(start + lane).to(tl.uint64, bitcast=True)
    sums = tl.zeros([LEAVES, 8], tl.uint64) + lanes
    for block in range(15):
        for stripe in tl.static_range(16):
            at = block * 128 + stripe * 8
            sums = _absorb(sums, word + at, other + at, secret + stripe * 8 + lane, mask)
        sums = sums ^ (sums >> 47)
        sums = sums ^ tl.load(secret + 128 + lane).to(tl.uint64, bitcast=True)
        sums = sums * 0x9E3779B1
    for stripe in tl.static_range(15):
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
