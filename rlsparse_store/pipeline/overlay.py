"""The walker: a tensor's source, with the chunks of a delta laid over it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rlsparse_store.format.index.records import ChunkCoding, Kind
from rlsparse_store.format.words import widen
from rlsparse_store.pipeline.scratch import ScratchBuffer
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord
    from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder

__all__ = ["CheckpointTensor", "Overlay", "Segment", "TensorReader", "find_source", "pieces"]


class TensorReader(Protocol):
    """Reads the bytes of one tensor by position.

    The source of an :class:`Overlay` is one, and so is the overlay itself: the result of a delta
    may be the base of another.
    """

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Raises:
            RlsparseError: The bytes cannot be read, or decoded.
        """

    def prefetch(self, start: int, stop: int) -> None:
        """Fetch bytes of the tensor that will be read, as :meth:`Source.prefetch` does."""


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A tensor of a checkpoint. May be read from several threads.

    Attributes:
        checkpoint: The checkpoint.
        tensor: The tensor.
    """

    checkpoint: Checkpoint
    tensor: TensorRef

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.tensor.nbytes

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Raises:
            RlsparseError: The file is truncated or unreadable.
        """
        self.checkpoint.read_into(self.tensor, start, out)

    def prefetch(self, start: int, stop: int) -> None:
        """Fetch bytes of the tensor that will be read, as :meth:`Source.prefetch` does."""
        source, first = self.checkpoint.files[self.tensor.file].source, self.tensor.offset
        source.prefetch([(first + start, first + stop)])


def find_source(t: TensorRecord, base: Checkpoint) -> CheckpointTensor | None:
    """Return the source of a tensor in the base; ``None`` for a tensor that is stored whole."""
    if t.kind is Kind.WHOLE:
        return None
    return CheckpointTensor(base, base.tensors[t.origin])


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive bytes of a tensor before any widening: a chunk's, or unchanged ones.

    Attributes:
        start: The first byte.
        stop: The byte after the last one.
        chunk: The chunk; ``None`` where the tensor equals its source.
    """

    start: int
    stop: int
    chunk: ChunkRecord | None

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


def pieces(start: int, stop: int) -> Iterator[Segment]:
    """Split unchanged bytes into segments of ``PIECE_BYTES``."""
    for first in range(start, stop, PIECE_BYTES):
        yield Segment(first, min(first + PIECE_BYTES, stop), None)


class Overlay:
    """A tuned tensor: the bytes of its source, with the chunks of a delta laid over them.

    Only one thread at a time may call :meth:`read_into` and :meth:`view`, which keep the last
    chunk that they needed a part of: sequential calls decode each chunk once.

    Args:
        t: The tensor, not an alias.
        chunks: Its chunks, in order.
        source: Its source; ``None`` without a source.
        decoder: Decodes the chunks.
        buffer: Memory for the chunk that is kept; by default the overlay's own.

    Attributes:
        tensor: The tensor.
        chunks: Its chunks, in order.
        source: Its source, if any.
        nbytes: Bytes of the tensor.
        coded_nbytes: Bytes of the tensor before any widening.
        source_nbytes: Bytes of the source; 0 without a source.
        shared_nbytes: Leading bytes that have a counterpart in the source.
    """

    def __init__(
        self,
        t: TensorRecord,
        chunks: list[ChunkRecord],
        source: TensorReader | None,
        decoder: ChunkDecoder,
        buffer: ScratchBuffer | None = None,
    ) -> None:
        self.tensor = t
        self.chunks = chunks
        self.source = source
        # Bytes of the tensor per byte of coded words.
        self._scale = 2 if t.widening else 1
        self.nbytes = t.nbytes
        self.coded_nbytes = t.nbytes // self._scale
        self._coding = t.coding or t.dtype.coding
        self.source_nbytes = self.shared_nbytes = 0
        if source is not None:
            self.source_nbytes = source.nbytes
            self.shared_nbytes = t.nbytes if t.coding is None else t.coding.nbytes(t.shared)
        self._ends = [self._coding.nbytes(chunk.first + chunk.length) for chunk in chunks]
        self._decoder = decoder
        self._buffer = ScratchBuffer() if buffer is None else buffer
        self._kept: tuple[ChunkRecord, NDArray[np.uint8]] | None = None

    def segments(self, start: int = 0, stop: int | None = None) -> Iterator[Segment]:
        """Yield the segments that overlap a range, in order.

        Args:
            start: First byte of the range, before any widening.
            stop: The byte after the last one; by default the end of the tensor.

        Yields:
            Whole chunks, and the parts of the range between them.
        """
        stop = self.coded_nbytes if stop is None else stop
        for i in range(bisect_right(self._ends, start), len(self._ends)):
            if start >= stop:
                return
            chunk = self.chunks[i]
            first = self._coding.nbytes(chunk.first)
            if start < min(first, stop):
                yield Segment(start, min(first, stop), None)
            if first >= stop:
                return
            yield Segment(first, self._ends[i], chunk)
            start = self._ends[i]
        if start < stop:
            yield Segment(start, stop, None)

    def read_source(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the source's bytes from byte ``start`` on."""
        assert self.source is not None  # noqa: S101 - the index was checked
        self.source.read_into(start, out)

    def decode(
        self,
        segment: Segment,
        base: NDArray[np.uint8],
        out: NDArray[np.uint8],
        base_leaves: NDArray[np.uint64] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64] | None]:
        """Decode a chunk, as :meth:`ChunkDecoder.decode` does. May be called on any thread."""
        assert segment.chunk is not None  # noqa: S101 - the caller checked
        return self._decoder.decode(self.tensor, segment.chunk, base, out, base_leaves)

    def widen(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return bytes of the tensor from bytes before any widening."""
        if not self.tensor.widening:
            return data
        return widen(data.view(np.uint16), self.tensor.widening).view(np.uint8)

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Raises:
            FormatError: The delta is damaged, or the source is wrong.
            RlsparseError: A file is truncated or unreadable.
        """
        first, stop = start // self._scale, (start + len(out)) // self._scale
        for segment in self.segments(first, stop):
            begin, end = max(segment.start, first), min(segment.stop, stop)
            part = out[begin * self._scale - start : end * self._scale - start]
            if self._scale == 1 and segment.chunk is None:
                self.read_source(begin, part)
            elif self._scale == 1 and len(part) == segment.nbytes:
                data = self._decode_into(segment, part)
                if data is not part:
                    part[:] = data
            else:
                part[:] = self.widen(self.view(begin, end))

    def prefetch(self, start: int, stop: int) -> None:
        """Fetch what reading a range of the tensor needs: chunks, and the source below them.

        Args:
            start: First byte of the range.
            stop: The byte after the last one.
        """
        segments = list(self.segments(start // self._scale, stop // self._scale))
        self._decoder.prefetch(s.chunk for s in segments if s.chunk is not None)
        below: list[list[int]] = []
        for segment in segments:
            if segment.chunk is None or segment.chunk.coding is not ChunkCoding.WHOLE:
                if below and below[-1][1] == segment.start:
                    below[-1][1] = segment.stop
                else:
                    below.append([segment.start, segment.stop])
        for first, last in below:
            assert self.source is not None  # noqa: S101 - the index was checked
            self.source.prefetch(first, last)

    def view(
        self, start: int, stop: int, base: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return bytes of the tensor, before any widening.

        Args:
            start: The first byte.
            stop: The byte after the last one.
            base: The source's bytes of this range, if the caller has them.

        Returns:
            Read-only bytes, valid until the next call: ``base`` itself if it is given and equal.

        Raises:
            FormatError: The delta is damaged, or the source is wrong.
            RlsparseError: A file is truncated or unreadable.
        """
        first = next(self.segments(start, stop), None)
        if first is not None and first.stop >= stop:
            return self._part(first, start, stop, base)
        # Copied: the next chunk is decoded in the memory of the one before.
        out = np.empty(stop - start, np.uint8)
        for segment in self.segments(start, stop):
            begin, end = max(segment.start, start), min(segment.stop, stop)
            known = None if base is None else base[begin - start : end - start]
            out[begin - start : end - start] = self._part(segment, begin, end, known)
        return out

    def _part(
        self, segment: Segment, start: int, stop: int, base: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """Return bytes of one segment, as :meth:`view` does."""
        if segment.chunk is not None:
            return self._keep(segment)[start - segment.start : stop - segment.start]
        if base is not None:
            return base
        data = np.empty(stop - start, np.uint8)
        self.read_source(start, data)
        return data

    def _keep(self, segment: Segment) -> NDArray[np.uint8]:
        """Return the decoded bytes of a chunk, and keep them for the next call."""
        if self._kept is None or self._kept[0] is not segment.chunk:
            self._kept = None
            data = self._decode_into(segment, self._buffer.take(segment.nbytes))
            assert segment.chunk is not None  # noqa: S101 - the caller checked
            self._kept = segment.chunk, data
        return self._kept[1]

    def _decode_into(self, segment: Segment, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Read and decode a chunk, in ``data`` if possible."""
        assert segment.chunk is not None  # noqa: S101 - the caller checked
        if segment.chunk.coding is not ChunkCoding.WHOLE:
            self.read_source(segment.start, data)
        return self.decode(segment, data, data)[0]
