"""Small tensors, of which many are encoded or decoded together.

A small tensor is at most one leaf long, so it has one leaf hash and is one chunk, if any. The work
on it takes less time than the calls that a larger tensor needs. So neighbours in a file are read
together, and the kernels take many tensors in one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.codec.chunk import open_chunk
from rlsparse_store.files.neighbours import neighbours
from rlsparse_store.format.digests import LEAF_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.index.records import ChunkRecord
    from rlsparse_store.kernels.interface import ChunkStreams

__all__ = ["SMALL_BYTES", "open_streams", "read_tensors"]

SMALL_BYTES: Final = LEAF_BYTES
"""Maximum bytes of a small tensor."""


def read_tensors(
    checkpoint: Checkpoint, tensors: Sequence[TensorRef], out: NDArray[np.uint8]
) -> None:
    """Read whole tensors, one after the other, and neighbours in a file in one call.

    Args:
        checkpoint: Their checkpoint.
        tensors: The tensors.
        out: Memory for their bytes.

    Raises:
        RlsparseError: A file was cut short or cannot be read.
    """
    done = 0
    for first, stop in neighbours([(t.file, t.offset, t.nbytes) for t in tensors]):
        nbytes = sum(tensor.nbytes for tensor in tensors[first:stop])
        checkpoint.read_into(tensors[first], 0, out[done : done + nbytes])
        done += nbytes


def open_streams(record: ChunkRecord, stored: bytes, coding: WordCoding) -> ChunkStreams:
    """Decompress a delta chunk without row flags.

    Raises:
        StreamError: The frame is broken.
    """
    _, content = open_chunk(record, stored, coding, None)
    return record.bounds, record.changed, content
