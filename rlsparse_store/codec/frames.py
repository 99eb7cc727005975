"""One zstd frame per chunk: entropy coding of its streams, and checked decompression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import zstandard

from rlsparse_store.codec.cost import ONE_BIT, n_log_n
from rlsparse_store.errors import LimitError, StreamError
from rlsparse_store.limits import MAX_WINDOW

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["compress", "compress_plainly", "content_size", "decompress"]

# Fixed here rather than taken from a level, whose meaning moves between library versions.
# Literals dominate, so the fast strategy suffices; short matches would cost more than they save.
_PARAMETERS: Final = {
    "window_log": 19,
    "chain_log": 13,
    "hash_log": 14,
    "search_log": 1,
    "min_match": 7,
    "target_length": 0,
    "strategy": zstandard.STRATEGY_FAST,
    "write_content_size": True,
    "write_checksum": False,
    "write_dict_id": False,
}

_BLOCK_COST: Final = 24 * ONE_BIT
_TABLE_COST: Final = 40 * ONE_BIT
_SYMBOL_COST: Final = 5 * ONE_BIT


SAMPLED: Final = 4096
"""Bytes of a stream, evenly spread, that its histogram is taken from."""


def _histograms(streams: list[bytes]) -> NDArray[np.int64]:
    """How often each byte value occurs in each stream, estimated where it is long."""
    histograms = np.empty((len(streams), 256), np.int64)
    for histogram, stream in zip(histograms, streams, strict=True):
        every = max(1, len(stream) // SAMPLED)
        sample = np.frombuffer(stream, np.uint8)[::every]
        histogram[:] = np.bincount(sample, minlength=256) * every
    return histograms


def _block_costs(histograms: NDArray[np.int64]) -> NDArray[np.int64]:
    """About what zstd makes of bytes with each histogram as one block of its own."""
    size = histograms.sum(1)
    symbols = np.count_nonzero(histograms, 1)
    ideal = n_log_n(size) - n_log_n(histograms).sum(1)
    # Huffman spends at least one bit per byte, and about a percent more than the entropy.
    coded = np.maximum(ideal + ideal // 100, size * ONE_BIT) + _TABLE_COST + symbols * _SYMBOL_COST
    plain = np.minimum(coded, size * 8 * ONE_BIT)
    return _BLOCK_COST + np.where(symbols <= 1, 8 * ONE_BIT, plain)


def _block_starts(streams: list[bytes]) -> list[bool]:
    """Which streams begin a block: where two blocks cost less than one for both."""
    if len(streams) < 2:
        return [True] * len(streams)
    histograms = _histograms(streams)
    alone = _block_costs(histograms)
    with_next = _block_costs(histograms[:-1] + histograms[1:])
    starts = [True]
    block, cost, together = histograms[0], alone[0], with_next[:1]
    for number in range(1, len(streams)):
        apart = bool(cost + alone[number] < together[0])
        starts.append(apart)
        block = histograms[number] if apart else block + histograms[number]
        cost = alone[number] if apart else together[0]
        if number + 1 < len(streams):
            # Only a block of several streams has not been tried with the next one yet.
            joined = block + histograms[number + 1]
            together = with_next[number:] if apart else _block_costs(joined[None])
    return starts


def compress(streams: list[bytes]) -> bytes:
    """Compress streams into one frame, with a new block where the distribution changes.

    A block carries its own Huffman table, so streams that differ are cheaper apart and streams
    that are alike, or tiny, are cheaper together.
    """
    streams = [stream for stream in streams if stream]
    parameters = zstandard.ZstdCompressionParameters(**_PARAMETERS)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(
        size=sum(map(len, streams))
    )
    stored: list[bytes] = []
    for stream, starts in zip(streams, _block_starts(streams), strict=True):
        if starts and stored:
            stored.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        stored.append(compressor.compress(stream))
    stored.append(compressor.flush())
    return b"".join(stored)


def compress_plainly(content: bytes, level: int) -> bytes:
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
    try:
        frame = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError as error:
        msg = f"not a zstd frame ({error})"
        raise StreamError(msg) from error
    if frame.content_size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
        msg = "the zstd frame does not tell its content size"
        raise StreamError(msg)
    # A frame of one segment has its content size as its window, which the caller bounds.
    if frame.window_size > max(MAX_WINDOW, frame.content_size):
        msg = f"the zstd frame wants a window of {frame.window_size} bytes"
        raise LimitError(msg)
    if frame.dict_id or frame.has_checksum:
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
        content: bytes = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        msg = f"the zstd frame is broken ({error})"
        raise StreamError(msg) from error
    if len(content) != size:
        msg = f"the zstd frame holds {len(content)} bytes, not the {size} it announces"
        raise StreamError(msg)
    return content
