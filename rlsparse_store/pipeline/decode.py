"""Decoding: the tuned tensors of a delta, piece by piece, each piece checked."""

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
"""Takes bytes of a tuned tensor: the tensor, their position in its data, and the bytes, which are
overwritten afterwards. Called from several threads."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A run of words: what is needed of the base, and the chunk that changes it, if one does.

    Attributes:
        tensor: The tensor.
        first: Its first word.
        words: Its words.
        start: Where its base bytes begin in the source.
        base_nbytes: Its base bytes, which may lie beyond the tensor's end.
        chunk: The chunk.
    """

    tensor: TensorRecord
    first: int
    words: int
    start: int = 0
    base_nbytes: int = 0
    chunk: ChunkRecord | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it reads, roughly."""
        stored = 0 if self.chunk is None else self.chunk.stored
        return self.base_nbytes + self.words + stored

    @property
    def is_end(self) -> bool:
        """Whether it is the empty one behind all others of its tensor."""
        return not (self.words or self.base_nbytes)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some bytes of a tensor as its digest takes them: by their leaf hashes, or themselves.

    Runs need not begin and end with leaves, though those of this library's encoder do.
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
    ) -> _Part:
        """Bytes that begin at ``start`` of a tensor's data, and their hashes if known."""
        end = start + data.size
        if start % LEAF_BYTES or (end % LEAF_BYTES and end != end_of_data):
            return cls(None, data.copy())
        return cls(leaf_hashes(data) if leaves is None else leaves, _NO_BYTES)

    def add_to(self, digester: TensorDigester) -> None:
        """Add it to the digest of its tensor."""
        if self.leaves is None:
            digester.add(self.data)
        else:
            digester.add_leaves(self.leaves)


@dataclass(frozen=True, slots=True)
class _DecodedSegment:
    """What became of a run: the bytes it wrote, and what the digests need."""

    run: _Segment
    nbytes: int
    source: _Part
    result: _Part


_NO_BYTES: Final = np.zeros(0, np.uint8)


def decode_tensors(
    reader: DeltaReader, base: Checkpoint, threads: int, write: Write, progress: Progress
) -> None:
    """Decode every tensor but aliases, checking everything on the way.

    Stored bytes, base words and result words of each chunk are checked before it is handed to
    ``write``; the digests of each source and each tensor once they are complete.

    Args:
        reader: The delta.
        base: The base.
        threads: Threads to decode on.
        write: Takes the results.
        progress: Called with bytes done and bytes in all.

    Raises:
        FormatError: The delta is damaged, or the base is not the right one.
    """
    check_sources(reader, base)
    decoder = _Decoder(reader, base, write)
    digests = _Digests(reader, base)
    done, total = 0, reader.manifest.totals.tuned_bytes
    for part in ordered_map(decoder.decode, _segments(reader, base), threads):
        digests.add(part)
        done += part.nbytes
        progress(done, total)


class _Digests:
    """The digests of a source and its result, compared before the next tensor is looked at."""

    def __init__(self, reader: DeltaReader, base: Checkpoint) -> None:
        self._reader = reader
        self._base = base
        self._tensor: TensorRecord | None = None
        self._source = self._result = TensorDigester(0)

    def add(self, part: _DecodedSegment) -> None:
        """Take the next run."""
        t = part.run.tensor
        if t is not self._tensor:
            self._tensor = t
            has_source = t.kind in (Kind.SAME, Kind.DELTA)
            self._source = TensorDigester(self._base.tensors[t.origin].nbytes if has_source else 0)
            self._result = TensorDigester(t.nbytes)
        part.source.add_to(self._source)
        part.result.add_to(self._result)
        if part.run.is_end:
            self._compare(t)

    def _compare(self, t: TensorRecord) -> None:
        """Compare what is complete: first the source, for a wrong one spoils the result."""
        if t.kind in (Kind.SAME, Kind.DELTA):
            expected = t.base_digest if t.kind is Kind.DELTA else t.tuned_digest
            if self._source.digest() != expected:
                problem = "has other values in the base"
                raise wrong_base(self._reader, self._base.path, t.origin, problem)
        if self._result.digest() != t.tuned_digest:
            msg = "the decoded tensor does not have its digest; the delta is damaged"
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
    place = 0
    for chunk in chunks:
        yield from _copies(t, source, place, chunk.first)
        place = chunk.first + chunk.length
        needed = 0
        if source is not None:
            needed = max(0, coding.nbytes(min(place, t.shared)) - coding.nbytes(chunk.first))
        yield _Segment(t, chunk.first, chunk.length, coding.nbytes(chunk.first), needed, chunk)
    yield from _copies(t, source, place, t.words)
    if source is not None:
        # A source may be longer than what is shared of it, and its digest covers all of it.
        for rest in range(coding.nbytes(t.shared), source.nbytes, PIECE_BYTES):
            yield _Segment(t, t.words, 0, rest, min(PIECE_BYTES, source.nbytes - rest))
    yield _Segment(t, t.words, 0)


def _copies(t: TensorRecord, source: TensorRef | None, start: int, end: int) -> Iterator[_Segment]:
    """Runs of words that are the source's own."""
    if source is None or start >= end:
        return
    coding = t.coding or t.dtype.coding
    step = coding.num_words(PIECE_BYTES)
    for first in range(start, end, step):
        words = min(step, end - first)
        yield _Segment(t, first, words, coding.nbytes(first), coding.nbytes(words))


class _Decoder:
    """Decodes runs, on any thread."""

    def __init__(self, reader: DeltaReader, base: Checkpoint, write: Write) -> None:
        self._base = base
        self._write = write
        self._chunks = ChunkDecoder(reader, base.path)
        self._scratch = Scratch()

    def decode(self, run: _Segment) -> _DecodedSegment:
        """Read, decode and write a run."""
        t = run.tensor
        data = self._scratch.base.take(run.base_nbytes)
        source = _Part(None, _NO_BYTES)
        if run.base_nbytes:
            tensor = self._base.tensors[t.origin]
            self._base.read_into(tensor, run.start, data)
            source = _Part.of(data, run.start, tensor.nbytes)
        if run.words == 0:
            return _DecodedSegment(run, 0, source, _Part(None, _NO_BYTES))
        leaves, start = source.leaves, run.start
        if run.chunk is not None:
            data, leaves = self._chunks.decode(t, run.chunk, data, leaves)
        if t.widening:
            data, leaves = widen(data.view(np.uint16), t.widening).view(np.uint8), None
            start *= 2
        self._write(t, start, data)
        return _DecodedSegment(run, data.size, source, _Part.of(data, start, t.nbytes, leaves))
