"""Reading a tuned tensor, its bytes made of base and delta as it is read."""

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
    """Bytes of a source that are read at once.

    Attributes:
        start: The first byte.
        stop: The byte after the last.
    """

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.stop - self.start


class TensorReader:
    """The bytes of one tuned tensor.

    It keeps the chunk that it stopped in, so it is for one thread.

    Args:
        t: The tensor, which is no alias.
        chunks: Its chunks, in order.
        base: The base.
        source: The tensor of the base that it comes from, if it does from one.
        decoder: Decodes the chunks. The bytes are made in its memory.
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
        # Of each byte of a chunk's words, so many bytes of the tensor.
        self._scale = 2 if t.widening else 1
        self._ends = [self._place(chunk.first + chunk.length) for chunk in chunks]
        self._held: tuple[ChunkRecord, Bytes] | None = None

    def make(self, threads: int) -> Bytes:
        """All of the tensor's bytes, made together in a device's memory.

        The base's words are read to their place there, and the chunks joined to them in batches,
        while the next ones are decompressed.

        Args:
            threads: Threads to read and to decompress on.

        Raises:
            FormatError: The delta is damaged, or the base is not the right one.
            MemoryError: The device has no memory left.
            RlsparseError: A file was cut short or cannot be read.
        """
        memory, t = self._memory, self._tensor
        with memory.working():
            buffer = memory.empty(t.nbytes // self._scale)

        def read(piece: _ByteRange) -> None:
            with memory.working():
                self._from_base(piece.start, buffer[piece.start : piece.stop])

        for _ in ordered_map(read, _pieces(self._shared_nbytes), threads):
            pass
        chunks = ((self._words_of(chunk), t, chunk) for chunk in self._chunks)
        for batch in open_batches(self._decoder, chunks, threads):
            with memory.working():
                parts = [buffer[place] for place, _ in batch.items]
                made = self._decoder.join([chunk for _, chunk in batch.items], parts)
                for part, (data, _) in zip(parts, made, strict=True):
                    memory.put(part, data)
        if not t.widening:
            return buffer
        with memory.working():
            out = memory.empty(t.nbytes)
            memory.widen(buffer, t.widening, out)
        return out

    def _words_of(self, chunk: ChunkRecord) -> slice:
        """A chunk's bytes of the tensor, before any widening."""
        start = self._coding.nbytes(chunk.first)
        return slice(start, start + self._coding.nbytes(chunk.length))

    @property
    def _shared_nbytes(self) -> int:
        """Bytes of the source that the tensor begins with, changed ones among them."""
        if self._source is None:
            return 0
        t = self._tensor
        return t.nbytes if t.coding is None else t.coding.nbytes(t.shared)

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Only the chunks that these bytes touch are decoded, each of them once as long as calls go
        from front to back.

        Raises:
            FormatError: The delta is damaged, or the base is not the right one.
            RlsparseError: A file was cut short or cannot be read.
        """
        place, end = start, start + len(out)
        number = bisect_right(self._ends, place)
        while place < end:
            chunk = self._chunks[number] if number < len(self._chunks) else None
            first = end if chunk is None else self._place(chunk.first)
            if chunk is None or place < first:
                stop = min(first, end)
                self._copy(place, out[place - start : stop - start])
            else:
                stop = min(self._ends[number], end)
                self._patch(chunk, place - first, out[place - start : stop - start])
                number += 1
            place = stop

    def _place(self, word: int) -> int:
        """The byte of the tensor at which a word begins."""
        return self._coding.nbytes(word) * self._scale

    def _copy(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with bytes that no chunk changes."""
        self._finish(self._from_base(start // self._scale, self._buffer(out)), out)

    def _patch(self, chunk: ChunkRecord, skip: int, out: Bytes) -> None:
        """Fill ``out`` with bytes of a chunk, from its byte ``skip`` on."""
        nbytes = self._place(chunk.length)
        if len(out) == nbytes:
            self._finish(self._decode(chunk, self._buffer(out)), out)
            return
        if self._held is None or self._held[0] is not chunk:
            whole = self._memory.empty(nbytes)
            self._finish(self._decode(chunk, self._buffer(whole)), whole)
            self._held = (chunk, whole)
        out[:] = self._held[1][skip : skip + len(out)]

    def _decode(self, chunk: ChunkRecord, buffer: Bytes) -> Bytes:
        """The words of a chunk before any widening, in ``room`` if they can be made there."""
        if chunk.coding is not ChunkCoding.WHOLE:
            self._from_base(self._coding.nbytes(chunk.first), buffer)
        return self._decoder.decode(self._tensor, chunk, buffer)[0]

    def _from_base(self, start: int, buffer: Bytes) -> Bytes:
        source = self._source
        assert source is not None  # noqa: S101 - the index was checked
        self._memory.fill(buffer, lambda data: self._base.read_into(source, start, data))
        return buffer

    def _buffer(self, out: Bytes) -> Bytes:
        """Where the source's bytes for ``out`` go: there, unless they have to grow."""
        return out if self._scale == 1 else self._memory.empty(len(out) // self._scale)

    def _finish(self, data: Bytes, out: Bytes) -> None:
        """Bring words to their place, unless they were made there."""
        if self._tensor.widening:
            self._memory.widen(data, self._tensor.widening, out)
        else:
            self._memory.put(out, data)


def _pieces(nbytes: int) -> Iterator[_ByteRange]:
    """The first bytes of a source, so many at a time."""
    for start in range(0, nbytes, PIECE_BYTES):
        yield _ByteRange(start, min(start + PIECE_BYTES, nbytes))
