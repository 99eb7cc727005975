"""One zstd frame per chunk: entropy coding of its streams, and checked decompression."""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from rlsparse_store.errors import LimitError, StreamError
from rlsparse_store.format.limits import MAX_WINDOW

__all__ = ["compress", "compress_bytes", "content_size", "decompress"]

_MAGIC: Final = b"\x28\xb5\x2f\xfd"

# Bits of the frame header's descriptor, its fifth byte.
_HAS_DICTIONARY: Final = 0b011
_HAS_CHECKSUM: Final = 0b100

# Fixed here rather than taken from a level, whose meaning moves between library versions.
# Literals dominate, so the fast strategy suffices; short matches would cost more than they save.
_PARAMETERS: Final = {
    "window_log": 19,
    "chain_log": 13,
    "search_log": 1,
    "min_match": 7,
    "target_length": 0,
    "strategy": zstandard.STRATEGY_FAST,
    "write_content_size": True,
    "write_checksum": False,
    "write_dict_id": False,
}

# Streams of a delta hold nothing that comes again but long runs: with fewer places to remember,
# those are found as well, in less time, and fewer short matches that cost more than they save.
_STREAMS_HASH_LOG: Final = 10

# The words of a tensor may come again.
_WORDS_HASH_LOG: Final = 14


class _ThreadContexts(threading.local):
    """What the library works with: making it takes longer than a small frame does.

    Each thread keeps its own, for two may not use one at a time.
    """

    def __init__(self) -> None:
        self.streams = _compressor(_STREAMS_HASH_LOG)
        self.words = _compressor(_WORDS_HASH_LOG)
        self.decompressor = zstandard.ZstdDecompressor()


def _compressor(hash_log: int) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters(**_PARAMETERS, hash_log=hash_log)
    return zstandard.ZstdCompressor(compression_params=parameters)


_CONTEXTS: Final = _ThreadContexts()


def compress(
    content: bytes | memoryview, block_ends: list[int], *, of_words: bool = False
) -> bytes:
    """Compress the streams of a chunk into one frame.

    Args:
        content: The streams, one after another.
        block_ends: Where each zstd block ends, ascending to the end of the content. A block has
            a Huffman table of its own.
        of_words: Whether they are words stored whole, which may repeat.
    """
    contexts = _CONTEXTS.words if of_words else _CONTEXTS.streams
    compressor = contexts.compressobj(size=len(content))
    view = memoryview(content)
    stored: list[bytes] = []
    start = 0
    for end in block_ends:
        if start:
            stored.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        stored.append(compressor.compress(view[start:end]))
        start = end
    stored.append(compressor.flush())
    return b"".join(stored)


def compress_bytes(content: bytes, level: int) -> bytes:
    """Compress one byte string that is not a chunk's streams, such as an index."""
    compressor = zstandard.ZstdCompressor(
        level=level, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    return compressor.compress(content)


def content_size(stored: bytes) -> int:
    """The content size a frame announces, once its header is known to be sound.

    Raises:
        StreamError: This is no zstd frame as the format wants it.
        LimitError: Its window is too large.
    """
    # zstandard reads the header of a skippable frame as well.
    if not stored.startswith(_MAGIC):
        msg = "not a zstd frame"
        raise StreamError(msg)
    try:
        frame = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        msg = f"not a zstd frame ({error})"
        raise StreamError(msg) from error
    # The window of a frame of a single segment is its content: this library's larger ones have one
    # of their own.
    if frame.window_size > MAX_WINDOW:
        msg = f"the zstd frame wants a window of {frame.window_size} bytes"
        raise LimitError(msg)
    if frame.content_size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
        msg = "the zstd frame does not tell its content size"
        raise StreamError(msg)
    # Not the dictionary's number: a field that holds 0 is read as none.
    if stored[4] & (_HAS_DICTIONARY | _HAS_CHECKSUM):
        msg = "the zstd frame has a dictionary or a checksum of its own"
        raise StreamError(msg)
    return int(frame.content_size)


def decompress(stored: bytes, largest: int) -> bytes:
    """Decompress one frame of at most ``largest`` bytes of content.

    Raises:
        StreamError: The frame is broken, announces more, or is followed by anything.
    """
    size = content_size(stored)
    if size > largest:
        msg = f"the zstd frame announces {size} bytes where at most {largest} can be needed"
        raise StreamError(msg)
    try:
        content: bytes = _CONTEXTS.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        msg = f"the zstd frame is broken ({error})"
        raise StreamError(msg) from error
    if len(content) != size:
        msg = f"the zstd frame holds {len(content)} bytes, not the {size} it announces"
        raise StreamError(msg)
    return content
