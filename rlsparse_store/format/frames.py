"""One zstd frame per chunk: entropy coding of its streams, and checked decompression."""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from rlsparse_store.errors import StreamError
from rlsparse_store.format.limits import MAX_BLOCK

__all__ = ["compress", "compress_bytes", "content_size", "decompress"]

_MAGIC: Final = b"\x28\xb5\x2f\xfd"

_SIZE_BYTES: Final = {0x20: 1, 0x60: 2, 0xA0: 4, 0xE0: 8}
"""Bytes of the content size by the descriptor, the fifth byte of a frame.

Each is a single segment without checksum and dictionary; every other descriptor is refused.
"""

_SINGLE_SEGMENT: Final = 0x20

_NO_MEMORY: Final = "Allocation error"
"""What zstd says of too little memory. The binding has no other sign of it."""

# What a block's header says.
_RLE, _RESERVED = 1, 3

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

    Raises:
        MemoryError: There is too little memory.
    """
    compressor = _CONTEXTS.words if of_words else _CONTEXTS.streams
    try:
        if len(block_ends) == 1 and len(content) <= MAX_BLOCK:
            # The same bytes in one call.
            return _as_single_segment(compressor.compress(content))
        return _as_single_segment(_compress_blocks(compressor, content, block_ends))
    except zstandard.ZstdError as error:
        _raise_memory_error(error)
        raise


def _compress_blocks(
    compressor: zstandard.ZstdCompressor, content: bytes | memoryview, block_ends: list[int]
) -> bytes:
    stream = compressor.compressobj(size=len(content))
    view = memoryview(content)
    stored: list[bytes] = []
    start = 0
    for end in block_ends:
        if start:
            stored.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        stored.append(stream.compress(view[start:end]))
        start = end
    stored.append(stream.flush())
    return b"".join(stored)


def compress_bytes(content: bytes, level: int) -> bytes:
    """Compress one byte string that is not a chunk's streams, such as an index.

    Raises:
        MemoryError: There is too little memory.
    """
    compressor = zstandard.ZstdCompressor(
        level=level, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    try:
        return _as_single_segment(compressor.compress(content))
    except zstandard.ZstdError as error:
        _raise_memory_error(error)
        raise


def _raise_memory_error(error: zstandard.ZstdError) -> None:
    """Raise Python's error for too little memory if this is zstd's."""
    if _NO_MEMORY in str(error):
        raise MemoryError(str(error)) from error


def _as_single_segment(frame: bytes) -> bytes:
    """The frame without the window that zstd declares where the content is longer than its own."""
    if frame[4] & _SINGLE_SEGMENT:
        return frame
    return frame[:4] + bytes([frame[4] | _SINGLE_SEGMENT]) + frame[6:]


def content_size(stored: bytes) -> int:
    """The content size that a frame declares, once its header and its blocks are checked.

    Raises:
        StreamError: This is no zstd frame as the format wants it.
    """
    nbytes = _SIZE_BYTES.get(stored[4]) if len(stored) > 4 else None
    if not stored.startswith(_MAGIC) or nbytes is None:
        msg = "not a zstd frame of a single segment without checksum and dictionary"
        raise StreamError(msg)
    size = int.from_bytes(stored[5 : 5 + nbytes], "little")
    _check_blocks(stored, 5 + nbytes)
    return size + 256 if nbytes == 2 else size


def _check_blocks(stored: bytes, at: int) -> None:
    """Walk the block headers: decompressors differ in which sizes they accept."""
    last = 0
    while not last:
        header = int.from_bytes(stored[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if at + 3 > len(stored) or kind == _RESERVED or size > MAX_BLOCK:
            msg = f"the zstd frame has a broken block at byte {at}"
            raise StreamError(msg)
        at += 3 + (1 if kind == _RLE else size)
    if at != len(stored):
        msg = f"the zstd frame ends at byte {at} of {len(stored)}"
        raise StreamError(msg)


def decompress(stored: bytes, largest: int) -> bytes:
    """Decompress one frame of at most ``largest`` bytes of content.

    Raises:
        StreamError: The frame is broken, declares more, or is followed by anything.
        MemoryError: There is too little memory.
    """
    size = content_size(stored)
    if size > largest:
        msg = f"the zstd frame declares {size} bytes; at most {largest} are possible"
        raise StreamError(msg)
    try:
        content: bytes = _CONTEXTS.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        _raise_memory_error(error)
        msg = f"the zstd frame is broken ({error})"
        raise StreamError(msg) from error
    if len(content) != size:
        msg = f"the zstd frame holds {len(content)} bytes, not the {size} that it declares"
        raise StreamError(msg)
    return content
