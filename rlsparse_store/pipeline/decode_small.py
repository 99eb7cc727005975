"""Decoding of many small tensors in a few calls.

Checks and results are those of decoding them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.digests import digest_of_leaves
from rlsparse_store.format.index.records import ChunkCoding, Kind, TensorRecord
from rlsparse_store.format.words import as_words
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.small_tensors import SMALL_BYTES, open_streams, read_tensors

if TYPE_CHECKING:
    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.index.records import ChunkRecord
    from rlsparse_store.kernels.interface import ChunkStreams
    from rlsparse_store.pipeline.scratch import ScratchBuffer
    from rlsparse_store.pipeline.threads import Batch

__all__ = ["SmallTensor", "Write", "decode_small", "small_tensor"]

Write = Callable[[TensorRecord, int, NDArray[np.uint8]], None]
"""Receives bytes of a tuned tensor: the tensor, their offset in its data, and the bytes, which are
valid only during the call. Called from several threads."""


class SmallTensor(NamedTuple):
    """A small tensor to decode.

    Attributes:
        tensor: The tensor.
        chunk: Its chunk; ``None`` if it equals its source.
        source: Its source, of as many bytes.
        coding: Its word coding.
    """

    tensor: TensorRecord
    chunk: ChunkRecord | None
    source: TensorRef
    coding: WordCoding


def small_tensor(
    t: TensorRecord, chunks: list[ChunkRecord], base: Checkpoint
) -> SmallTensor | None:
    """Return what to decode of a small tensor; ``None`` for any other tensor.

    Tensors of other kinds, with row flags or with 4-bit words are decoded one by one.
    """
    if t.nbytes > SMALL_BYTES or not t.nbytes or len(chunks) > 1:
        return None
    if t.kind not in (Kind.SAME, Kind.DELTA) or t.widening or t.tail:
        return None
    source, coding = base.tensors[t.origin], t.coding or t.dtype.coding
    if source.nbytes != t.nbytes or coding.width == 4 or coding.nbytes(t.words) != t.nbytes:
        return None
    chunk = chunks[0] if chunks else None
    if chunk and (chunk.coding is not ChunkCoding.DELTA or chunk.length != t.words):
        return None
    return SmallTensor(t, chunk, source, coding)


def decode_small(
    reader: DeltaReader,
    base: Checkpoint,
    batch: Batch[SmallTensor],
    buffer: ScratchBuffer,
    write: Write,
) -> bool:
    """Decode and check small tensors of one coding, then write them.

    Args:
        reader: The delta.
        base: The base.
        batch: The tensors.
        buffer: Memory of this thread.
        write: Receives the results.

    Returns:
        Whether all is right. Otherwise nothing was written: decoding the tensors one by one finds
        the error, and the tensors before it.
    """
    # In the order of the base's file, most are neighbours there and in the tuned file.
    tensors = sorted(batch.items, key=lambda small: (small.source.file, small.source.offset))
    stops = list(accumulate(small.source.nbytes for small in tensors))
    data = buffer.take(stops[-1])
    try:
        if not _decode(reader, base, tensors, np.array(stops, np.uint64), data):
            return False
    except RlsparseError:
        return False
    for small, stop in zip(tensors, stops, strict=True):
        write(small.tensor, 0, data[stop - small.source.nbytes : stop])
    return True


def _decode(
    reader: DeltaReader,
    base: Checkpoint,
    tensors: list[SmallTensor],
    ends: NDArray[np.uint64],
    data: NDArray[np.uint8],
) -> bool:
    """Fill ``data`` with the tuned tensors, and return whether all checks hold."""
    backend, coding = get_backend(), tensors[0].coding
    streams = _streams(reader, tensors)
    read_tensors(base, [small.source for small in tensors], data)
    base_leaves = backend.hash_each(data, ends)
    bases = np.array([small.chunk.base if small.chunk else 0 for small in tensors], np.uint64)
    changed = np.array([small.chunk is not None for small in tensors])
    if not (_checks(base_leaves) == bases)[changed].all():
        return False
    words, word_ends = as_words(data, coding.width), ends // np.uint64(coding.width // 8)
    leaves = base_leaves.copy()
    backend.apply_each(words, word_ends, coding, streams, words, leaves)
    results = np.array([small.chunk.result if small.chunk else 0 for small in tensors], np.uint64)
    if not (_checks(leaves) == results)[changed].all():
        return False
    return all(
        _is_right(small.tensor, base_leaves[i : i + 1], leaves[i : i + 1])
        for i, small in enumerate(tensors)
    )


def _streams(reader: DeltaReader, tensors: list[SmallTensor]) -> list[ChunkStreams | None]:
    """Read and decompress the chunk of each tensor that has one."""
    chunks = [small.chunk for small in tensors if small.chunk]
    chunks.sort(key=lambda chunk: chunk.tensor)
    stored = dict(zip((c.tensor for c in chunks), reader.stored_each(chunks), strict=True))
    return [
        None if chunk is None else open_streams(chunk, stored[chunk.tensor], coding)
        for _, chunk, _, coding in tensors
    ]


def _checks(leaves: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the check of each byte string that has one leaf, from the leaf hashes."""
    ends = np.arange(8, 8 * leaves.size + 8, 8, dtype=np.uint64)
    checks: NDArray[np.uint64] = get_backend().hash_each(leaves.view(np.uint8), ends)
    return checks & np.uint64(0xFFFFFFFF)


def _is_right(t: TensorRecord, base_leaf: NDArray[np.uint64], leaf: NDArray[np.uint64]) -> bool:
    """Whether a tensor and its source have the digests of the index."""
    digest = digest_of_leaves(t.nbytes, leaf)
    if t.kind is Kind.DELTA:
        return digest == t.tuned_digest and digest_of_leaves(t.nbytes, base_leaf) == t.base_digest
    return digest == t.tuned_digest
