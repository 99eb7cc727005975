"""Comparing words, flagging rows and counting histograms."""

from __future__ import annotations

import triton
import triton.language as tl

from rlsparse_store.gpu.kernels.words import (
    as_unsigned,
    key_of,
    load_part,
    magnitude_of,
    ones,
    row_of,
    step_of,
)

__all__ = ["compare_words", "count_bins", "flag_rows"]


@triton.jit
def compare_words(
    chunks,
    chunk_of_tile,
    bits,
    numbers,
    top_keys,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Find the differing words of each part, their number, and the largest key of their base words.

    A thread handles eight words, whose bits fill a byte, so that threads share no output.
    """
    part = tl.program_id(0)
    tile = part // PARTS
    chunk = chunks + tl.load(chunk_of_tile + tile) * COLUMNS
    start = (tile - tl.load(chunk + 3)) * (PARTS * PART) + (part % PARTS) * PART
    byte = tl.arange(0, PART // 8)
    bit = tl.arange(0, 8)[None, :]
    position = byte[:, None] * 8 + bit
    words = tl.load(chunk + 2)
    before = load_part(tl.load(chunk), start, words, position, WIDTH, PART)
    after = load_part(tl.load(chunk + 1), start, words, position, WIDTH, PART)
    differs = before != after
    one = tl.full([PART // 8, 8], 1, tl.int32) << bit
    packed = tl.sum(tl.where(differs, one, 0), 1)
    tl.store(bits + part.to(tl.int64) * (PART // 8) + byte, packed.to(tl.uint8))
    key = tl.where(differs, key_of(as_unsigned(before, WIDTH), WIDTH, ORDER), 0)
    tl.store(numbers + part, tl.sum(tl.sum(differs.to(tl.int32), 1), 0))
    tl.store(top_keys + part, tl.max(tl.max(key, 1), 0).to(tl.int32, bitcast=True))


@triton.jit
def flag_rows(
    chunks,
    chunk_of_tile,
    bits,
    flags,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Flag the rows of each chunk that hold a changed word.

    Each group flags the row of its first changed word, clears the bits of that row, and repeats.
    """
    tile = tl.program_id(0)
    chunk = chunks + tl.load(chunk_of_tile + tile) * COLUMNS
    group = (tile - tl.load(chunk + 3)) * GROUPS + tl.arange(0, GROUPS)
    start = group * GROUP
    first_flag = tl.load(chunk + 6)
    inside = (start < tl.load(chunk + 2)) & (first_flag >= 0)
    length = tl.load(chunk + 4)
    offset = tl.load(chunk + 5)
    left = tl.load(bits + tl.load(chunk + 7) + group, mask=inside, other=0)
    left = left.to(tl.uint32, bitcast=True)
    while tl.max((left != 0).to(tl.int32)) > 0:
        lowest = left & (0 - left)
        row = (start + ones(lowest - 1).to(tl.int64) + offset) // length
        tl.store(flags + first_flag + row, 1, mask=left != 0)
        end = tl.minimum((row + 1) * length - offset - start, GROUP)
        # Two shifts, because a shift by 32 bits is undefined.
        half = (tl.maximum(end, 0) // 2).to(tl.uint32)
        rest = (tl.maximum(end, 0) - half).to(tl.uint32)
        left = (((left >> half) >> rest) << half) << rest


@triton.jit
def _bin_of(key, ends, bins, BINS: tl.constexpr):
    """Count the bins that end below a key; ``BINS`` is a power of two above their number."""
    found = tl.zeros_like(key).to(tl.int32)
    jump: tl.constexpr = BINS // 2
    for halving in tl.static_range(16):
        if (jump >> halving) > 0:
            ahead = found + (jump >> halving)
            is_bin = ahead <= bins
            end = tl.load(ends + ahead - 1, mask=is_bin, other=0).to(tl.uint32, bitcast=True)
            found = tl.where(is_bin & (end < key), ahead, found)
    return found


@triton.jit(do_not_specialize=["bins"])
def count_bins(
    chunks,
    samples,
    flags,
    ends,
    words,
    moved,
    bins,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BINS: tl.constexpr,
    CLASSES: tl.constexpr,
    PART: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Count the words of each bin of keys, and the changed ones by class of their step.

    ``samples`` has the chunk and part of each program. With row flags, only active rows count.
    ``ends`` has the bin of each key; for 32-bit words, the largest key of each bin.
    """
    number = tl.load(samples + 2 * tl.program_id(0))
    start = tl.load(samples + 2 * tl.program_id(0) + 1).to(tl.int64) * PART
    chunk = chunks + number * COLUMNS
    position = tl.arange(0, PART)
    inside = position < tl.minimum(tl.load(chunk + 2) - start, PART).to(tl.int32)
    if HAS_ROWS:
        first_flag = tl.load(chunk + 6)
        row = row_of(chunk, start, position, PART)
        live = tl.load(flags + first_flag + row, mask=inside & (first_flag >= 0), other=1)
        inside &= live != 0
    before = load_part(tl.load(chunk), start, tl.load(chunk + 2), position, WIDTH, PART)
    after = load_part(tl.load(chunk + 1), start, tl.load(chunk + 2), position, WIDTH, PART)
    key = key_of(as_unsigned(before, WIDTH), WIDTH, ORDER)
    found = tl.load(ends + key) if WIDTH <= 16 else _bin_of(key, ends, bins, BINS)
    # Words that do not count go to an extra bin after the last one.
    counts = tl.histogram(tl.where(inside, found, BINS - 1), BINS)
    at = tl.arange(0, BINS)
    counted = (at < bins) & (counts != 0)
    tl.atomic_add(words + number * bins + at, counts, mask=counted, sem="relaxed")
    step = step_of(before, after, WIDTH, ORDER)
    magnitude = magnitude_of(step)
    far = tl.full([PART], 2, tl.int32)
    for bit in tl.static_range(CLASSES - 3):
        far += (magnitude >= 3 + (1 << bit)).to(tl.int32)
    kind = tl.where(magnitude <= 3, magnitude.to(tl.int32) - 1, far)
    cell = (number * bins + found) * CLASSES + kind
    tl.atomic_add(moved + cell, 1, mask=inside & (before != after), sem="relaxed")
