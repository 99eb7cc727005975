"""Frames written by hand (Conventions)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import zstandard

from format_vectors.draft import plain

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC: Final = b"\x28\xb5\x2f\xfd"


def raw_frame(
    content: bytes, *, window: int | None = None, flags: int = 0, size: int | None = None
) -> bytes:
    """A frame written by hand, of one raw block.

    Args:
        content: Its content, less than 128 KiB.
        window: Logarithm of the window; without one it is a single segment.
        flags: Bits of the frame header descriptor to set.
        size: The content size to announce.
    """
    announced = (len(content) if size is None else size).to_bytes(4, "little")
    descriptor = bytes([0x80 | (0x20 if window is None else 0) | flags])
    descriptor += b"" if window is None else bytes([(window - 10) << 3])
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return MAGIC + descriptor + announced + block + content


def unsized_frame(stored: bytes) -> bytes:
    """A frame of one raw block that declares no content size."""
    content = plain(stored)
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return MAGIC + b"\x00\x48" + block + content


def _with_dictionary(number: int) -> Callable[[bytes], bytes]:
    """A frame with a field of one byte for a dictionary's number."""

    def edit(stored: bytes) -> bytes:
        frame = raw_frame(plain(stored), flags=1)
        return frame[:5] + bytes([number]) + frame[5:]

    return edit


def single_segment(blocks: int) -> bytes:
    """A frame of one segment with so many blocks of 128 KiB, each one byte repeated."""
    size = blocks << 17
    block = (1 << 17 << 3 | 2).to_bytes(3, "little") + b"\0"
    last = (1 << 17 << 3 | 3).to_bytes(3, "little") + b"\0"
    return MAGIC + b"\xa0" + size.to_bytes(4, "little") + block * (blocks - 1) + last


def frame_with_checksum(stored: bytes) -> bytes:
    """A frame with a checksum of its own."""
    compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True)
    return compressor.compress(plain(stored))
