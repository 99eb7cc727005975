"""What an index may not make a reader do."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from rlsparse_store.codec.chunk import decode_whole
from rlsparse_store.errors import IndexFormatError, StreamError
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.frames import decompress
from rlsparse_store.format.index.columns import ColumnWriter
from rlsparse_store.format.index.reader import decode_index
from rlsparse_store.format.limits import MIN_CHUNK_STORED


def index_of_equal_chunks(count: int, stored: int) -> bytes:
    """An index of one ``whole`` tensor whose chunks are a byte each; most columns take no room."""
    out = ColumnWriter()
    out.integers([1, 0, 0, count, 1])
    out.names(["w"])
    out.names([])
    out.names([])
    # Kind, dtype, rank, dims, width; map, widening, origin, tail; steps; moved.
    for value in (2, 4, 1, count, 8, 0, 0, 0, 0):
        out.integers([value])
    out.integers([0] * 8)
    out.integers([0])
    out.digests([bytes(16)])
    # Tensor, skip, length, coding, shard, stored, check, result.
    for value in (0, 0, 1, 1, 0, stored, 0, 0):
        out.integers(np.full(count, value, np.uint64))
    for _ in range(4):
        out.integers([])
    out.names(["t.safetensors"])
    out.integers([0])
    out.integers([0])
    out.text(b"")
    out.integers([0])
    out.text(b"")
    out.integers([0])
    return out.content()


def test_an_index_of_equal_chunks() -> None:
    index = decode_index(index_of_equal_chunks(3, 10), [30])
    assert [chunk.offset for chunk in index.chunks] == [0, 10, 20]


@pytest.mark.parametrize("held", [0, 29, 31])
def test_chunks_fill_their_shard(held: int) -> None:
    with pytest.raises(IndexFormatError):
        decode_index(index_of_equal_chunks(3, 10), [held])


def test_a_shorter_chunk_is_refused() -> None:
    with pytest.raises(IndexFormatError, match="too few bytes"):
        decode_index(index_of_equal_chunks(10, 9), [90 + 10])


def test_chunks_that_are_not_there_take_no_memory() -> None:
    content = index_of_equal_chunks(1 << 20, 1)
    tracemalloc.start()
    with pytest.raises(IndexFormatError, match="more than the data has room for"):
        decode_index(content, [1 << 20])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20


def test_the_shortest_frame_is_as_long_as_the_shortest_chunk() -> None:
    # A single segment with its size in a byte; a last block of one byte, raw or repeated.
    for block in ("090000 07", "0b0000 07"):
        stored = bytes.fromhex("28b52ffd 20 01" + block)
        assert len(stored) == MIN_CHUNK_STORED
        assert decode_whole(stored, 1, DTYPES["U8"].coding).tolist() == [7]


def test_no_shorter_frame_has_content() -> None:
    # After the magic number: descriptor, content size, a block's header.
    for descriptor, size, first in itertools.product(range(256), (0, 1, 2), range(32)):
        stored = bytes.fromhex("28b52ffd") + bytes([descriptor, size, first, 0, 0])
        assert len(stored) == MIN_CHUNK_STORED - 1
        try:
            assert decompress(stored, 1 << 20) == b""
        except StreamError:
            continue
