"""What the kernels know of words, bits and bytes."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "as_unsigned",
    "bit_length",
    "key_of",
    "load_part",
    "magnitude_of",
    "members_of",
    "moved_by",
    "ones",
    "or_bits",
    "ordered",
    "read_bits",
    "row_of",
    "step_of",
    "words_at",
]


@triton.jit
def words_at(address, WIDTH: tl.constexpr, ALIGNMENT: tl.constexpr = 1):
    """Where words lie, as a pointer.

    What divides the address is said here: Triton forgets what callers say of a function's result.
    """
    if WIDTH == 8:
        pointer = address.to(tl.pointer_type(tl.int8))
    elif WIDTH == 16:
        pointer = address.to(tl.pointer_type(tl.int16))
    else:
        pointer = address.to(tl.pointer_type(tl.int32))
    if ALIGNMENT > 1:
        pointer = tl.multiple_of(pointer, ALIGNMENT)
    return pointer


@triton.jit
def load_part(address, start, words, place, WIDTH: tl.constexpr, PART: tl.constexpr):
    """The words of a part at these places, zero behind the last one of the chunk.

    A thread loads sixteen bytes at a time: the address is a multiple of that, and only a chunk's
    last part has a mask.
    """
    pointer = words_at(address, WIDTH, 16) + start + place
    if start + PART <= words:
        loaded = tl.load(pointer)
    else:
        loaded = tl.load(pointer, mask=place < (words - start).to(tl.int32), other=0)
    return loaded


@triton.jit
def row_of(chunk, start, place, PART: tl.constexpr):
    """The row of each word of a part, counted from the chunk's first.

    Of long rows a part touches two at most, and words of short ones have small numbers: no word
    takes a division of 64 bits, which the device has none of.
    """
    length = tl.load(chunk + 4)
    begun = start + tl.load(chunk + 5)
    first = begun // length
    offset = begun - first * length
    if length >= PART:
        later = (place >= length - offset).to(tl.int32)
    else:
        later = (offset.to(tl.int32) + place) // length.to(tl.int32)
    return first + later


@triton.jit
def as_unsigned(word, WIDTH: tl.constexpr):
    """A word as 32 bits without a sign."""
    wide = word.to(tl.int32).to(tl.uint32, bitcast=True)
    if WIDTH < 32:
        wide = wide & ((1 << WIDTH) - 1)
    return wide


@triton.jit
def ordered(word, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """The order map, which is its own inverse."""
    if ORDER == 2:
        low = (1 << (WIDTH - 1)) - 1
        word = tl.where(word > low, word ^ low, word)
    return word


@triton.jit
def key_of(word, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """What a word is classed by."""
    low = (1 << (WIDTH - 1)) - 1
    if ORDER == 2:
        word = word & low
    if ORDER == 1:
        word = tl.where(word > low, (word ^ 0xFFFFFFFF) & low, word)
    return word


@triton.jit
def step_of(before, after, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """By how much a word moved, as int32."""
    old = ordered(as_unsigned(before, WIDTH), WIDTH, ORDER)
    step = ordered(as_unsigned(after, WIDTH), WIDTH, ORDER) - old
    step = step.to(tl.int32, bitcast=True)
    return (step << (32 - WIDTH)) >> (32 - WIDTH)


@triton.jit
def moved_by(word, step, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """The word so many steps from one, in its own type."""
    after = ordered(as_unsigned(word, WIDTH), WIDTH, ORDER) + step.to(tl.uint32, bitcast=True)
    if WIDTH < 32:
        after = after & ((1 << WIDTH) - 1)
    return ordered(after, WIDTH, ORDER).to(tl.int32, bitcast=True).to(word.dtype)


@triton.jit
def magnitude_of(step):
    """|step|, which for the most negative one only fits without a sign."""
    bits = step.to(tl.uint32, bitcast=True)
    return tl.where(step < 0, 0 - bits, bits)


@triton.jit
def ones(bits):
    """How many of 32 bits are set."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101) >> 24


@triton.jit
def bit_length(value):
    """Bits of 32-bit values without a sign, 0 for 0."""
    length = tl.zeros_like(value)
    for power in tl.static_range(4, -1, -1):
        is_longer = (value >> (1 << power)) != 0
        length += tl.where(is_longer, 1 << power, 0)
        value = tl.where(is_longer, value >> (1 << power), value)
    return length + value


@triton.jit
def members_of(planes, context, PLANES: tl.constexpr):
    """Which words of a group are in a context, whose number is spread over planes of bits."""
    code = tl.zeros_like(planes[0]) + context
    members = tl.zeros_like(planes[0]) ^ 0xFFFFFFFF
    for plane in tl.static_range(PLANES):
        members &= planes[plane] ^ (((code >> plane) & 1) - 1)
    return members


@triton.jit
def or_bits(content, bit, value, mask):
    """Set the bits of a value, of at most 32, that begin at any bit of zeroed memory."""
    wide = value.to(tl.uint64) << (bit & 31).to(tl.uint64)
    word = content + (bit >> 5)
    low = (wide & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = (wide >> 32).to(tl.uint32).to(tl.int32, bitcast=True)
    tl.atomic_or(word, low, mask=mask & (low != 0), sem="relaxed")
    tl.atomic_or(word + 1, high, mask=mask & (high != 0), sem="relaxed")


@triton.jit
def read_bits(content, bit, mask):
    """32 bits that begin at any bit; a word more than they need is there to be read."""
    word = content + (bit >> 5)
    low = tl.load(word, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(word + 1, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (((high << 32) | low) >> (bit & 31).to(tl.uint64)).to(tl.uint32)
