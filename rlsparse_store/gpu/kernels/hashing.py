"""XXH3 of many leaves at once, eight lanes each."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["hash_leaves"]


@triton.jit
def _folded(left, right):
    """Return the XOR of the two halves of a 64-bit by 64-bit product."""
    low = 0xFFFFFFFF
    ll = (left & low) * (right & low)
    lh = (left & low) * (right >> 32)
    hl = (left >> 32) * (right & low)
    middle = (ll >> 32) + (lh & low) + (hl & low)
    high = (left >> 32) * (right >> 32) + (lh >> 32) + (hl >> 32) + (middle >> 32)
    return high ^ (left * right)


@triton.jit
def _absorb(sums, word, other, secret, mask):
    """Return the accumulators after a stripe."""
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
    """Compute XXH3 of leaves of 16384 bytes, given their addresses.

    A leaf has eight lanes and 16 blocks of 16 stripes of 64 bytes. The stripes of a block are
    unrolled so that their loads overlap. ``secret`` has eight words for each of the 16 stripes,
    for scrambling, for the last stripe and for merging; ``start`` has the initial accumulators.
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
    # Fold pairs of lanes.
    left, right = tl.split(tl.reshape(sums, [LEAVES, 4, 2]))
    folded = tl.sum(_folded(left, right), 1)
    length = tl.full([LEAVES], 16384, tl.uint64) * tl.full([LEAVES], 0x9E3779B185EBCA87, tl.uint64)
    hashed = folded + length
    hashed = hashed ^ (hashed >> 37)
    hashed = hashed * tl.full([LEAVES], 0x165667919E3779F9, tl.uint64)
    hashed = hashed ^ (hashed >> 32)
    row = tl.program_id(0) * LEAVES + tl.arange(0, LEAVES)
    tl.store(out + row, hashed.to(tl.int64, bitcast=True), mask=row < leaves)
