"""Reading of tuned tensors, decoded on demand from base and delta."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.format.index.records import ChunkCoding
from rlsparse_store.pipeline.chunk_batches import open_batches
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES
from rlsparse_store.pipeline.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord
    from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder
    from rlsparse_store.pipeline.memory import Bytes

__all__ = ["TensorReader"]


@dataclass(frozen=True, slots=True)
class _ByteRange:
    """Bytes of a source that one task reads.

    Attributes:
        start: The first byte.
        stop: The byte after the last one.
    """

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class TensorReader:
    """Reads the bytes of one tuned tensor.

    Not thread-safe: it caches the last chunk that was read in part.

    Args:
        t: The tensor, not an alias.
        chunks: Its chunks, in order.
        base: The base.
        source: Its source in the base; ``None`` without a source.
        decoder: Decodes the chunks. The results are in its memory.
    """

    def __init__(
        self,
        t: TensorRecord,
        chunks: list[ChunkRecord],
        base: Checkpoint,
        source: TensorRef | None,
        decoder: ChunkDecoder,
    ) -> None:
        self._tensor = t
        self._chunks = chunks
        self._base = base
        self._source = source
        self._decoder = decoder
        self._memory = decoder.memory
        self._coding = t.coding or t.dtype.coding
        # Bytes of the tensor per byte of coded words.
        self._scale = 2 if t.widening else 1
        self._ends = [self._byte_offset(chunk.first + chunk.length) for chunk in chunks]
        self._partial: tuple[ChunkRecord, Bytes] | None = None

    def read_all(self, threads: int) -> Bytes:
        """Decode all of the tensor in the decoder's memory, in batches of chunks.

        Reads all base words first. The threads decompress the next chunks while a batch is decoded.

        Args:
            threads: Threads to read and to decompress on.

        Raises:
            FormatError: The delta is damaged, or the base is wrong.
            MemoryError: The device is out of memory.
            RlsparseError: A file is truncated or unreadable.
        """
        memory, t = self._memory, self._tensor
        with memory.session():
            buffer = memory.empty(t.nbytes // self._scale)

        def read(part: _ByteRange) -> None:
            with memory.session():
                self._read_base(part.start, buffer[part.start : part.stop])

        for _ in ordered_map(read, _byte_ranges(self._shared_nbytes), threads):
            pass
        chunks = ((self._chunk_slice(chunk), t, chunk) for chunk in self._chunks)
        for batch in open_batches(self._decoder, chunks, threads):
            with memory.session():
                outputs = [buffer[extent] for extent, _ in batch.items]
                results = self._decoder.join([chunk for _, chunk in batch.items], outputs)
                for output, (data, _) in zip(outputs, results, strict=True):
                    memory.put(output, data)
        if not t.widening:
            return buffer
        with memory.session():
            out = memory.empty(t.nbytes)
            memory.widen(buffer, t.widening, out)
        return out

    def _chunk_slice(self, chunk: ChunkRecord) -> slice:
        """Return the range of a chunk's bytes in the tensor, before any widening."""
        start = self._coding.nbytes(chunk.first)
        return slice(start, start + self._coding.nbytes(chunk.length))

    @property
    def _shared_nbytes(self) -> int:
        """Bytes at the start of the tensor that have a counterpart in the source."""
        if self._source is None:
            return 0
        t = self._tensor
        return t.nbytes if t.coding is None else t.coding.nbytes(t.shared)

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Decodes only the chunks that overlap these bytes; sequential calls decode each chunk once.

        Raises:
            FormatError: The delta is damaged, or the base is wrong.
            RlsparseError: A file is truncated or unreadable.
        """
        position, end = start, start + len(out)
        i = bisect_right(self._ends, position)
        while position < end:
            chunk = self._chunks[i] if i < len(self._chunks) else None
            first = end if chunk is None else self._byte_offset(chunk.first)
            if chunk is None or position < first:
                stop = min(first, end)
                self._copy(position, out[position - start : stop - start])
            else:
                stop = min(self._ends[i], end)
                self._patch(chunk, position - first, out[position - start : stop - start])
                i += 1
            position = stop

    def _byte_offset(self, word: int) -> int:
        """Return the offset of a word in the tensor."""
        return self._coding.nbytes(word) * self._scale

    def _copy(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with bytes outside of all chunks."""
        self._store(self._read_base(start // self._scale, self._buffer(out)), out)

    def _patch(self, chunk: ChunkRecord, skip: int, out: Bytes) -> None:
        """Fill ``out`` with bytes of a chunk, from byte ``skip`` of the chunk on."""
        nbytes = self._byte_offset(chunk.length)
        if len(out) == nbytes:
            self._store(self._decode(chunk, self._buffer(out)), out)
            return
        if self._partial is None or self._partial[0] is not chunk:
            whole = self._memory.empty(nbytes)
            self._store(self._decode(chunk, self._buffer(whole)), whole)
            self._partial = (chunk, whole)
        out[:] = self._partial[1][skip : skip + len(out)]

    def _decode(self, chunk: ChunkRecord, buffer: Bytes) -> Bytes:
        """Decode a chunk, before any widening, in ``buffer`` if possible."""
        if chunk.coding is not ChunkCoding.WHOLE:
            self._read_base(self._coding.nbytes(chunk.first), buffer)
        return self._decoder.decode(self._tensor, chunk, buffer)[0]

    def _read_base(self, start: int, buffer: Bytes) -> Bytes:
        source = self._source
        assert source is not None  # noqa: S101 - the index was checked
        self._memory.fill(buffer, lambda data: self._base.read_into(source, start, data))
        return buffer

    def _buffer(self, out: Bytes) -> Bytes:
        """Return a buffer for the source's bytes: ``out`` itself, unless ``out`` is wider."""
        return out if self._scale == 1 else self._memory.empty(len(out) // self._scale)

    def _store(self, data: Bytes, out: Bytes) -> None:
        """Widen or copy ``data`` to ``out``, unless they share memory."""
        if self._tensor.widening:
            self._memory.widen(data, self._tensor.widening, out)
        else:
            self._memory.put(out, data)


def _byte_ranges(nbytes: int) -> Iterator[_ByteRange]:
    """Split the first ``nbytes`` bytes of a source into ranges of ``PIECE_BYTES``."""
    for start in range(0, nbytes, PIECE_BYTES):
        yield _ByteRange(start, min(start + PIECE_BYTES, nbytes))
