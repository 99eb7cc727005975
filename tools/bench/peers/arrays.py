"""What the restated codecs share: changed positions, narrow integers, arrays in a frame."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import zstandard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peers.base import Array, Tensor

ZSTD_LEVEL = 1
"""What all the systems that are restated here publish."""


def changed_positions(base: Tensor, tuned: Tensor) -> NDArray[np.int64]:
    """Flat positions of the words whose bits differ."""
    return np.flatnonzero(base.reshape(-1) != tuned.reshape(-1))


def narrowed(values: Array, *dtypes: str) -> Array:
    """Convert to the first of the dtypes, narrowest first, that holds the largest value."""
    largest = int(values.max(initial=0))
    fitting = next(dtype for dtype in dtypes if largest <= np.iinfo(dtype).max)
    return values.astype(fitting)


def pack(arrays: Sequence[Array]) -> bytes:
    """Join arrays behind a head that says how to part them."""
    heads = [struct.pack("<2sQ", array.dtype.str[1:].encode(), array.size) for array in arrays]
    head = struct.pack("<B", len(arrays)) + b"".join(heads)
    return b"".join([head, *(array.tobytes() for array in arrays)])


def unpack(content: bytes) -> list[Array]:
    """Part what :func:`pack` joined; the arrays are views."""
    heads = [struct.unpack_from("<2sQ", content, 1 + 10 * place) for place in range(content[0])]
    arrays, offset = [], 1 + 10 * len(heads)
    for code, size in heads:
        array = np.frombuffer(content, np.dtype("<" + code.decode()), size, offset)
        arrays.append(array)
        offset += array.nbytes
    return arrays


def pack_frame(arrays: Sequence[Array]) -> bytes:
    """Join arrays and compress them as one zstd frame."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(pack(arrays))


def unpack_frame(stored: bytes) -> list[Array]:
    """Read back what :func:`pack_frame` wrote."""
    return unpack(zstandard.ZstdDecompressor().decompress(stored))
