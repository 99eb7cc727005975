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


def with_blocks(*blocks: bytes) -> Callable[[bytes], bytes]:
    """A frame with the declared size of another, and these blocks."""
    return lambda stored: (
        MAGIC + b"\xa0" + len(plain(stored)).to_bytes(4, "little") + b"".join(blocks)
    )


def frame_with_dictionary(number: int) -> Callable[[bytes], bytes]:
    """A frame with a field of one byte for a dictionary's number."""

    def edit(stored: bytes) -> bytes:
        frame = raw_frame(plain(stored), flags=1)
        return frame[:5] + bytes([number]) + frame[5:]

    return edit


def block(kind: int, size: int, data: bytes, *, last: bool = True) -> bytes:
    """One block: 0 raw, 1 a byte repeated, 2 compressed, 3 reserved."""
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + data


def frame_with_checksum(stored: bytes) -> bytes:
    """A frame with a checksum of its own."""
    compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True)
    return compressor.compress(plain(stored))
