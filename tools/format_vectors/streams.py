"""Invalid frames and contents of chunks (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from format_vectors.chunks_by_hand import (
    CLASSES,
    EXPONENTS,
    LOW_BITS,
    SIGNS,
    joined,
    streams_of,
    with_part,
    words_of,
)
from format_vectors.draft import compressed, plain
from format_vectors.frames import (
    block,
    frame_with_checksum,
    frame_with_dictionary,
    raw_frame,
    unsized_frame,
    with_blocks,
)
from format_vectors.invalid import Invalid, Parent, with_frame
from rlsparse_store.format.bits import pack_flags
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.kernels.interface import Rows, Streams

if TYPE_CHECKING:
    from collections.abc import Callable


def with_streams(edit: Callable[[Streams], Streams]) -> Callable[[Parent], bytes]:
    """Edit the streams of the only chunk."""

    def make(parent: Parent) -> bytes:
        flags, streams = streams_of(parent.pair, parent.draft, 0)
        return parent.draft.with_content(0, joined(edit(streams), flags)).sealed()

    return make


def set_bit(stream: bytes, bit: int) -> bytes:
    """A stream with one bit set that was not; below 0 it counts from the end."""
    bit += len(stream) * 8 if bit < 0 else 0
    changed = bytearray(stream)
    if changed[bit // 8] >> bit % 8 & 1:
        msg = f"bit {bit} is set already"
        raise ValueError(msg)
    changed[bit // 8] |= 1 << bit % 8
    return bytes(changed)


def with_mask(edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    """Edit the mask of the first context of the only chunk."""
    return with_streams(lambda s: with_part(s, 0, edit(s.parts[0])))


def _flip_first(mask: bytes) -> bytes:
    """A bitmap with one bit more or less."""
    return bytes([mask[0] ^ 1]) + mask[1:]


def _overrun(mask: bytes) -> bytes:
    """Gaps of which the last is far too large."""
    return mask[:-1] + b"\xfe"


def _too_many(parent: Parent) -> bytes:
    """Claim one changed word more than the context has words."""
    flags, streams = streams_of(parent.pair, parent.draft, 0)
    n = streams.counts[0]
    content = joined(streams, flags)
    draft = parent.draft.with_content(0, content).with_chunk(0, changed=(n + 1,))
    return draft.with_tensor("w", steps=(n + 1, *[0] * 7)).sealed()


def _flag_a_row(parent: Parent) -> bytes:
    """Flag a row in which nothing changed, and leave the masks as those words make them."""
    draft = parent.draft
    c = draft.index.chunks[0]
    t = draft.index.tensors[0]
    before, after = words_of(parent.pair, t, c.first, c.length)
    row = t.row_words or 1
    backend = get_backend()
    coding = t.coding or t.dtype.coding
    changed = backend.changed_words(before, after, coding)
    active = backend.active_rows(changed, before.size, row, 0).active.copy()
    active[int(np.flatnonzero(~active)[0])] = True
    bounds = np.array(c.bounds, np.uint64)
    streams = backend.partition(before, changed, coding, bounds, Rows(active, row, 0))
    return draft.with_content(0, joined(streams, pack_flags(active))).sealed()


def _ends_behind_signs(streams: Streams) -> Streams:
    for part in (CLASSES, EXPONENTS, LOW_BITS):
        streams = with_part(streams, part, b"")
    return streams


def _far_step(
    exponent: bytes, low: bytes, classes: bytes | None = None
) -> Callable[[Streams], Streams]:
    """Make the chunk's large steps one with this exponent and these low bits."""

    def edit(streams: Streams) -> Streams:
        if classes is not None:
            streams = with_part(streams, CLASSES, classes)
        exponents = exponent + streams.parts[EXPONENTS][1:]
        return with_part(with_part(streams, EXPONENTS, exponents), LOW_BITS, low)

    return edit


def with_blocks_of(size: int) -> Callable[[bytes], bytes]:
    """A frame of one block of zeros."""
    return with_blocks(block(1, size, b"\0"))


def _wrapped_escape(mask: bytes) -> bytes:
    """An escape that is 2^32 ranks longer: a sum of 32 bits does not notice."""
    extra = int.from_bytes(mask[-4:], "little") + (1 << 29)
    return mask[:-4] + extra.to_bytes(4, "little")


def _step_below(parent: Parent) -> bytes:
    """The step -2^31 - 1 of a word of 32 bits."""
    flags, streams = streams_of(parent.pair, parent.draft, 0)
    streams = with_part(streams, SIGNS, b"\1")
    streams = _far_step(b"\x1e", (0x3FFFFFFE).to_bytes(4, "little"))(streams)
    draft = parent.draft.with_content(0, joined(streams, flags))
    return draft.with_tensor("w", steps=(0, 0, 0, 1, 0, 0, 0, 0)).sealed()


STREAMS: Final = (
    Invalid(
        "stream-second-frame",
        "stream",
        "a second frame",
        with_frame("w", lambda s: s + compressed(b"x")),
        "gaps",
    ),
    Invalid(
        "stream-skippable",
        "stream",
        "a skippable frame",
        with_frame("w", lambda s: s + b"\x50\x2a\x4d\x18" + bytes(4)),
        "gaps",
    ),
    Invalid(
        "stream-skippable-first",
        "stream",
        "a skippable frame before",
        with_frame("w", lambda s: b"\x50\x2a\x4d\x18" + bytes(4) + s),
        "gaps",
    ),
    Invalid(
        "stream-trailing",
        "stream",
        "bytes after the frame",
        with_frame("w", lambda s: s + b"\0"),
        "gaps",
    ),
    Invalid(
        "stream-cut", "stream", "a frame that is cut", with_frame("w", lambda s: s[:-1]), "gaps"
    ),
    Invalid(
        "stream-no-frame", "stream", "no frame", with_frame("w", lambda s: b"\0" + s[1:]), "gaps"
    ),
    Invalid("stream-no-size", "stream", "no content size", with_frame("w", unsized_frame), "gaps"),
    Invalid(
        "stream-checksum",
        "stream",
        "a checksum in the frame",
        with_frame("w", frame_with_checksum),
        "gaps",
    ),
    Invalid(
        "stream-dictionary",
        "stream",
        "a dictionary id",
        with_frame("w", frame_with_dictionary(7)),
        "gaps",
    ),
    Invalid(
        "stream-dictionary-zero",
        "stream",
        "a dictionary id of 0",
        with_frame("w", frame_with_dictionary(0)),
        "gaps",
    ),
    Invalid(
        "stream-announced",
        "stream",
        "a content far too large",
        with_frame("w", lambda _: compressed(bytes(1 << 20))),
        "gaps",
    ),
    Invalid(
        "stream-announced-lie",
        "stream",
        "another size than announced",
        with_frame("w", lambda s: raw_frame(plain(s), size=len(plain(s)) + 1)),
        "gaps",
    ),
    Invalid(
        "stream-leftover",
        "stream",
        "bytes after the last part",
        with_frame("w", lambda s: compressed(plain(s) + b"\0")),
        "gaps",
    ),
    Invalid(
        "stream-short",
        "stream",
        "a last part that is cut",
        with_frame("w", lambda s: compressed(plain(s)[:-1])),
        "gaps",
    ),
    Invalid(
        "stream-short-signs",
        "stream",
        "a content that ends behind the signs",
        with_streams(_ends_behind_signs),
        "bitmap",
    ),
    Invalid(
        "stream-popcount",
        "stream",
        "a bitmap of one word more or less",
        with_mask(_flip_first),
        "bitmap",
    ),
    Invalid(
        "stream-padding-mask",
        "stream",
        "a padding bit in a bitmap",
        with_mask(lambda m: set_bit(m, -1)),
        "bitmap",
    ),
    Invalid(
        "stream-padding-signs",
        "stream",
        "a padding bit in the signs",
        with_streams(lambda s: with_part(s, SIGNS, set_bit(s.parts[SIGNS], -1))),
        "bitmap",
    ),
    Invalid(
        "stream-padding-classes",
        "stream",
        "a padding bit in the classes",
        with_streams(lambda s: with_part(s, CLASSES, set_bit(s.parts[CLASSES], -1))),
        "bitmap",
    ),
    Invalid(
        "stream-padding-rows",
        "stream",
        "a padding bit in the row flags",
        with_frame("w", lambda s: compressed(set_bit(plain(s), 127))),
        "rows",
    ),
    Invalid(
        "stream-gap-overrun", "stream", "a gap that leaves its context", with_mask(_overrun), "gaps"
    ),
    Invalid(
        "stream-gap-escape",
        "stream",
        "an escape without its four bytes",
        with_mask(lambda m: m[:12] + b"\xff" + m[13:]),
        "gaps",
    ),
    Invalid(
        "stream-escape-overrun",
        "stream",
        "an escape that leaves its context",
        with_mask(lambda m: m[:-1] + b"\xff"),
        "escape",
    ),
    Invalid("stream-too-many", "stream", "more changed words than words", _too_many, "bitmap"),
    Invalid(
        "stream-row-unchanged",
        "stream",
        "a flagged row without a changed word",
        _flag_a_row,
        "rows",
    ),
    Invalid(
        "stream-exponent",
        "stream",
        "an exponent of 31 in words of 32 bits",
        with_streams(_far_step(b"\x1f", bytes(4))),
        "one-step",
    ),
    Invalid(
        "stream-exponent-large",
        "stream",
        "an exponent of 200",
        with_streams(_far_step(b"\xc8", bytes(25))),
        "one-step",
    ),
    Invalid(
        "stream-exponent-wrap",
        "stream",
        "an exponent of 63 in words of 64 bits, of a step that is 1 modulo 2^64",
        with_streams(_far_step(b"\x3f", ((1 << 63) - 2).to_bytes(8, "little"), classes=b"\3")),
        "one-step-wide",
    ),
    Invalid(
        "stream-step",
        "stream",
        "a step of 2^31 in words of 32 bits",
        with_streams(_far_step(b"\x1e", b"\xfd\xff\xff\x3f")),
        "one-step",
    ),
    Invalid(
        "stream-whole-size",
        "stream",
        "a whole chunk of another size",
        with_frame("i_new", lambda s: compressed(plain(s) + b"\0")),
        "mixed",
    ),
    Invalid(
        "stream-whole-short",
        "stream",
        "a whole chunk that is cut",
        with_frame("i_new", lambda s: compressed(plain(s)[:-1])),
        "mixed",
    ),
    Invalid(
        "stream-window",
        "stream",
        "a frame with a window",
        with_frame("w", lambda s: raw_frame(plain(s), window=20)),
        "gaps",
    ),
    Invalid(
        "stream-reserved-bit",
        "stream",
        "the descriptor's reserved bit",
        with_frame("w", lambda s: raw_frame(plain(s), flags=8)),
        "gaps",
    ),
    Invalid(
        "stream-unused-bit",
        "stream",
        "the descriptor's unused bit",
        with_frame("w", lambda s: raw_frame(plain(s), flags=16)),
        "gaps",
    ),
    Invalid(
        "stream-block-reserved",
        "stream",
        "a block of the reserved type",
        with_frame(
            "w",
            lambda s: with_blocks(block(0, len(plain(s)), plain(s), last=False), block(3, 0, b""))(
                s
            ),
        ),
        "gaps",
    ),
    Invalid(
        "stream-block-large",
        "stream",
        "a repeated byte in a block of more than 128 KiB",
        with_frame("zeros", with_blocks_of(131_073)),
        "repeated",
    ),
    Invalid(
        "stream-no-last",
        "stream",
        "no last block",
        with_frame("w", lambda s: with_blocks(block(0, len(plain(s)), plain(s), last=False))(s)),
        "gaps",
    ),
    Invalid(
        "stream-block-compressed",
        "stream",
        "a compressed block of noise",
        with_frame("w", lambda s: with_blocks(block(2, len(plain(s)), plain(s)))(s)),
        "gaps",
    ),
    Invalid(
        "stream-padding-low",
        "stream",
        "a padding bit in the low bits of steps",
        with_streams(lambda s: with_part(s, LOW_BITS, set_bit(s.parts[LOW_BITS], -1))),
        "padded",
    ),
    Invalid(
        "stream-padding-exponents",
        "stream",
        "a padding bit in the q's",
        with_streams(lambda s: with_part(s, EXPONENTS, set_bit(s.parts[EXPONENTS], -1))),
        "padded",
    ),
    Invalid(
        "stream-padding-gaps",
        "stream",
        "a padding bit in the gaps' low bits",
        with_mask(lambda m: set_bit(m, 3 * 61)),
        "padded",
    ),
    Invalid(
        "stream-escape-wrap",
        "stream",
        "a gap of more than 32 bits",
        with_mask(_wrapped_escape),
        "escape",
    ),
    Invalid(
        "stream-step-low",
        "stream",
        "a step below the smallest of its words",
        _step_below,
        "one-step",
    ),
    Invalid(
        "stream-gap-end",
        "stream",
        "a gap that leads to the first rank behind its context",
        with_mask(lambda m: m[:-1] + bytes([m[-1] + 16])),
        "gaps-plain",
    ),
)
