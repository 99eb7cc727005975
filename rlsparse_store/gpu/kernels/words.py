"""Functions on words, bits and bytes that the kernels share."""

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
    """Return an address as a pointer to words.

    The alignment is declared here, because Triton drops hints on a function's result.
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
def load_part(address, start, words, position, WIDTH: tl.constexpr, PART: tl.constexpr):
    """Load the words of a part at these positions, 0 after the chunk's last word.

    Loads are 16 bytes per thread: the address is aligned, and only a chunk's last part has a mask.
    """
    pointer = words_at(address, WIDTH, 16) + start + position
    if start + PART <= words:
        loaded = tl.load(pointer)
    else:
        loaded = tl.load(pointer, mask=position < (words - start).to(tl.int32), other=0)
    return loaded


@triton.jit
def row_of(chunk, start, position, PART: tl.constexpr):
    """Return the row of each word of a part, relative to the chunk's first row.

    A part touches at most two long rows, and row numbers of short rows are small. So no word needs
    a 64-bit division, which GPUs emulate.
    """
    length = tl.load(chunk + 4)
    begun = start + tl.load(chunk + 5)
    first = begun // length
    offset = begun - first * length
    if length >= PART:
        later = (position >= length - offset).to(tl.int32)
    else:
        later = (offset.to(tl.int32) + position) // length.to(tl.int32)
    return first + later


@triton.jit
def as_unsigned(word, WIDTH: tl.constexpr):
    """Return a word zero-extended to uint32."""
    wide = word.to(tl.int32).to(tl.uint32, bitcast=True)
    if WIDTH < 32:
        wide = wide & ((1 << WIDTH) - 1)
    return wide


@triton.jit
def ordered(word, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """Apply the order map, which is its own inverse."""
    if ORDER == 2:
        low = (1 << (WIDTH - 1)) - 1
        word = tl.where(word > low, word ^ low, word)
    return word


@triton.jit
def key_of(word, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """Return the key of a word, which determines its context."""
    low = (1 << (WIDTH - 1)) - 1
    if ORDER == 2:
        word = word & low
    if ORDER == 1:
        word = tl.where(word > low, (word ^ 0xFFFFFFFF) & low, word)
    return word


@triton.jit
def step_of(before, after, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """Return the step between two words as int32."""
    old = ordered(as_unsigned(before, WIDTH), WIDTH, ORDER)
    step = ordered(as_unsigned(after, WIDTH), WIDTH, ORDER) - old
    step = step.to(tl.int32, bitcast=True)
    return (step << (32 - WIDTH)) >> (32 - WIDTH)


@triton.jit
def moved_by(word, step, WIDTH: tl.constexpr, ORDER: tl.constexpr):
    """Return the word that is ``step`` steps from a word, in its own type."""
    after = ordered(as_unsigned(word, WIDTH), WIDTH, ORDER) + step.to(tl.uint32, bitcast=True)
    if WIDTH < 32:
        after = after & ((1 << WIDTH) - 1)
    return ordered(after, WIDTH, ORDER).to(tl.int32, bitcast=True).to(word.dtype)


@triton.jit
def magnitude_of(step):
    """Return |step| as uint32, which also holds that of the most negative step."""
    bits = step.to(tl.uint32, bitcast=True)
    return tl.where(step < 0, 0 - bits, bits)


@triton.jit
def ones(bits):
    """Count the set bits of a uint32."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101) >> 24


@triton.jit
def bit_length(value):
    """Return the bit length of a uint32; 0 for 0."""
    length = tl.zeros_like(value)
    for power in tl.static_range(4, -1, -1):
        is_longer = (value >> (1 << power)) != 0
        length += tl.where(is_longer, 1 << power, 0)
        value = tl.where(is_longer, value >> (1 << power), value)
    return length + value


@triton.jit
def members_of(planes, context, PLANES: tl.constexpr):
    """Return the bits of a group's words in a context, given the bit planes."""
    code = tl.zeros_like(planes[0]) + context
    members = tl.zeros_like(planes[0]) ^ 0xFFFFFFFF
    for plane in tl.static_range(PLANES):
        members &= planes[plane] ^ (((code >> plane) & 1) - 1)
    return members


@triton.jit
def or_bits(content, bit, value, mask):
    """Write up to 32 bits of a value at any bit position of zeroed memory."""
    wide = value.to(tl.uint64) << (bit & 31).to(tl.uint64)
    word = content + (bit >> 5)
    low = (wide & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = (wide >> 32).to(tl.uint32).to(tl.int32, bitcast=True)
    tl.atomic_or(word, low, mask=mask & (low != 0), sem="relaxed")
    tl.atomic_or(word + 1, high, mask=mask & (high != 0), sem="relaxed")


@triton.jit
def read_bits(content, bit, mask):
    """Read 32 bits at any bit position; the word after them must be readable."""
    word = content + (bit >> 5)
    low = tl.load(word, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(word + 1, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (((high << 32) | low) >> (bit & 31).to(tl.uint64)).to(tl.uint32)
