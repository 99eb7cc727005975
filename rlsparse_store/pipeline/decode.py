"""Decoding of all tuned tensors of a delta, in segments, with checks of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from rlsparse_store.errors import ResultMismatchError
from rlsparse_store.format.digests import LEAF_BYTES, TensorDigester, leaf_hashes
from rlsparse_store.format.index.records import ChunkRecord, Kind, TensorRecord
from rlsparse_store.format.names import printable
from rlsparse_store.format.words import widen
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, check_sources, wrong_base
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES
from rlsparse_store.pipeline.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.pipeline.progress import Progress

__all__ = ["Write", "decode_tensors"]

Write = Callable[[TensorRecord, int, NDArray[np.uint8]], None]
"""Receives bytes of a tuned tensor: the tensor, their offset in its data, and the bytes, which are
valid only during the call. Called from several threads."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A range of words that one task decodes.

    Attributes:
        tensor: Their tensor.
        first: The first word.
        words: Number of words.
        start: Offset of its base bytes in the source.
        base_nbytes: Number of its base bytes. They may extend beyond the tensor's end.
        chunk: The chunk of the range; ``None`` for a copy of the source.
    """

    tensor: TensorRecord
    first: int
    words: int
    start: int = 0
    base_nbytes: int = 0
    chunk: ChunkRecord | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it reads, about."""
        stored = 0 if self.chunk is None else self.chunk.stored
        return self.base_nbytes + self.words + stored

    @property
    def is_end(self) -> bool:
        """Whether it is the empty segment that ends a tensor."""
        return not (self.words or self.base_nbytes)


@dataclass(frozen=True, slots=True)
class _DigestInput:
    """Input of a tensor's digest: leaf hashes, or bytes that are not whole leaves.

    Segments of other encoders need not be aligned to leaves.
    """

    leaves: NDArray[np.uint64] | None
    data: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        data: NDArray[np.uint8],
        start: int,
        end_of_data: int,
        leaves: NDArray[np.uint64] | None = None,
    ) -> _DigestInput:
        """Return the input for bytes at offset ``start`` of a tensor's data.

        Args:
            data: The bytes.
            start: Their offset.
            end_of_data: Size of the tensor's data in bytes.
            leaves: Leaf hashes of the bytes; computed if ``None``.
        """
        end = start + data.size
        if start % LEAF_BYTES or (end % LEAF_BYTES and end != end_of_data):
            return cls(None, data.copy())
        return cls(leaf_hashes(data) if leaves is None else leaves, _NO_BYTES)

    def add_to(self, digester: TensorDigester) -> None:
        """Add the input to a digest."""
        if self.leaves is None:
            digester.add(self.data)
        else:
            digester.add_leaves(self.leaves)


@dataclass(frozen=True, slots=True)
class _DecodedSegment:
    """The result of a segment: the bytes written, and the inputs of the digests."""

    segment: _Segment
    nbytes: int
    source: _DigestInput
    result: _DigestInput


_NO_BYTES: Final = np.zeros(0, np.uint8)


def decode_tensors(
    reader: DeltaReader, base: Checkpoint, threads: int, write: Write, progress: Progress
) -> None:
    """Decode and check all tensors except aliases.

    Checks stored bytes, base words and result of each chunk before it calls ``write``, and the
    digests of each source and each tensor at its end.

    Args:
        reader: The delta.
        base: The base.
        threads: Threads to decode on.
        write: Receives the results.
        progress: Called with the bytes done and the total bytes.

    Raises:
        FormatError: The delta is damaged, or the base is wrong.
    """
    check_sources(reader, base)
    decoder = _Decoder(reader, base, write)
    digests = _Digests(reader, base)
    done, total = 0, reader.manifest.totals.tuned_bytes
    for decoded in ordered_map(decoder.decode, _segments(reader, base), threads):
        digests.add(decoded)
        done += decoded.nbytes
        progress(done, total)


class _Digests:
    """The digests of a source and its result, checked at the end of each tensor."""

    def __init__(self, reader: DeltaReader, base: Checkpoint) -> None:
        self._reader = reader
        self._base = base
        self._tensor: TensorRecord | None = None
        self._source = self._result = TensorDigester(0)

    def add(self, decoded: _DecodedSegment) -> None:
        """Add the next segment."""
        t = decoded.segment.tensor
        if t is not self._tensor:
            self._tensor = t
            has_source = t.kind in (Kind.SAME, Kind.DELTA)
            self._source = TensorDigester(self._base.tensors[t.origin].nbytes if has_source else 0)
            self._result = TensorDigester(t.nbytes)
        decoded.source.add_to(self._source)
        decoded.result.add_to(self._result)
        if decoded.segment.is_end:
            self._check(t)

    def _check(self, t: TensorRecord) -> None:
        """Check both digests, first the source: a wrong source makes the result wrong, too."""
        if t.kind in (Kind.SAME, Kind.DELTA):
            expected = t.base_digest if t.kind is Kind.DELTA else t.tuned_digest
            if self._source.digest() != expected:
                raise wrong_base(self._reader, self._base.path, t.origin, "has different values")
        if self._result.digest() != t.tuned_digest:
            msg = "the decoded tensor does not match its digest; the delta is damaged"
            raise ResultMismatchError(msg, file=self._reader.path, tensor=printable(t.name))


def _segments(reader: DeltaReader, base: Checkpoint) -> Iterator[_Segment]:
    chunks = reader.index.chunks_of_tensors()
    for t in reader.index.tensors:
        if t.kind is not Kind.ALIAS:
            yield from _tensor_segments(base, t, chunks.get(t.name, []))


def _tensor_segments(
    base: Checkpoint, t: TensorRecord, chunks: list[ChunkRecord]
) -> Iterator[_Segment]:
    source = base.tensors[t.origin] if t.kind in (Kind.SAME, Kind.DELTA) else None
    coding = t.coding or t.dtype.coding
    position = 0
    for chunk in chunks:
        yield from _copies(t, source, position, chunk.first)
        position = chunk.first + chunk.length
        base_nbytes = 0
        if source is not None:
            base_stop = coding.nbytes(min(position, t.shared))
            base_nbytes = max(0, base_stop - coding.nbytes(chunk.first))
        yield _Segment(t, chunk.first, chunk.length, coding.nbytes(chunk.first), base_nbytes, chunk)
    yield from _copies(t, source, position, t.words)
    if source is not None:
        # The digest covers all of a source, also the part that the tuned tensor does not share.
        for start in range(coding.nbytes(t.shared), source.nbytes, PIECE_BYTES):
            yield _Segment(t, t.words, 0, start, min(PIECE_BYTES, source.nbytes - start))
    yield _Segment(t, t.words, 0)


def _copies(t: TensorRecord, source: TensorRef | None, start: int, end: int) -> Iterator[_Segment]:
    """Yield segments without chunks from word ``start`` to ``end``."""
    if source is None or start >= end:
        return
    coding = t.coding or t.dtype.coding
    step = coding.num_words(PIECE_BYTES)
    for first in range(start, end, step):
        words = min(step, end - first)
        yield _Segment(t, first, words, coding.nbytes(first), coding.nbytes(words))


class _Decoder:
    """Decodes segments, on any thread."""

    def __init__(self, reader: DeltaReader, base: Checkpoint, write: Write) -> None:
        self._base = base
        self._write = write
        self._decoder = ChunkDecoder(reader, base.path)
        self._scratch = Scratch()

    def decode(self, segment: _Segment) -> _DecodedSegment:
        """Read, decode and write a segment."""
        t = segment.tensor
        data = self._scratch.base.take(segment.base_nbytes)
        source = _DigestInput(None, _NO_BYTES)
        if segment.base_nbytes:
            tensor = self._base.tensors[t.origin]
            self._base.read_into(tensor, segment.start, data)
            source = _DigestInput.of(data, segment.start, tensor.nbytes)
        if segment.words == 0:
            return _DecodedSegment(segment, 0, source, _DigestInput(None, _NO_BYTES))
        leaves, start = source.leaves, segment.start
        if segment.chunk is not None:
            data, leaves = self._decoder.decode(t, segment.chunk, data, leaves)
        if t.widening:
            data, leaves = widen(data.view(np.uint16), t.widening).view(np.uint8), None
            start *= 2
        self._write(t, start, data)
        return _DecodedSegment(
            segment, data.size, source, _DigestInput.of(data, start, t.nbytes, leaves)
        )
