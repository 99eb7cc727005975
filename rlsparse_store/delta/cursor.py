"""Reading a tuned tensor, its bytes made of base and delta as it is read."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.container import ChunkCoding
from rlsparse_store.delta.sources import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlsparse_store.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.container import ChunkRecord, TensorRecord
    from rlsparse_store.delta.chunks import ChunkDecoder
    from rlsparse_store.frameworks import Bytes

__all__ = ["Run", "TensorCursor"]


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of a tensor that is read at once: one chunk, or bytes that no chunk changes.

    Attributes:
        start: Its first byte.
        stop: The byte after its last.
    """

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.stop - self.start


class TensorCursor:
    """The bytes of one tuned tensor.

    It keeps the chunk that it stopped in, so it is for one thread; but its runs, which stop in no
    chunk, may be read on several.

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

    def runs(self) -> Iterator[Run]:
        """The whole tensor in runs, from front to back."""
        place = 0
        for chunk, end in zip(self._chunks, self._ends, strict=True):
            first = self._place(chunk.first)
            yield from _pieces(place, first)
            yield Run(first, end)
            place = end
        yield from _pieces(place, self._tensor.nbytes)

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
        self._finish(self._from_base(start // self._scale, self._room(out)), out)

    def _patch(self, chunk: ChunkRecord, skip: int, out: Bytes) -> None:
        """Fill ``out`` with bytes of a chunk, from its byte ``skip`` on."""
        nbytes = self._place(chunk.length)
        if len(out) == nbytes:
            self._finish(self._decode(chunk, self._room(out)), out)
            return
        if self._held is None or self._held[0] is not chunk:
            whole = self._memory.empty(nbytes)
            self._finish(self._decode(chunk, self._room(whole)), whole)
            self._held = (chunk, whole)
        out[:] = self._held[1][skip : skip + len(out)]

    def _decode(self, chunk: ChunkRecord, room: Bytes) -> Bytes:
        """The words of a chunk before any widening, in ``room`` if they can be made there."""
        if chunk.coding is not ChunkCoding.WHOLE:
            self._from_base(self._coding.nbytes(chunk.first), room)
        return self._decoder.decode(self._tensor, chunk, room)[0]

    def _from_base(self, start: int, room: Bytes) -> Bytes:
        source = self._source
        assert source is not None  # noqa: S101 - the index was checked
        self._memory.fill(room, lambda data: self._base.read_into(source, start, data))
        return room

    def _room(self, out: Bytes) -> Bytes:
        """Where the source's bytes for ``out`` go: there, unless they have to grow."""
        return out if self._scale == 1 else self._memory.empty(len(out) // self._scale)

    def _finish(self, data: Bytes, out: Bytes) -> None:
        """Bring words to their place, unless they were made there."""
        if self._tensor.widening:
            self._memory.widen(data, self._tensor.widening, out)
        else:
            self._memory.put(out, data)


def _pieces(start: int, stop: int) -> Iterator[Run]:
    """Bytes that no chunk changes, so many at a time."""
    for place in range(start, stop, PIECE_BYTES):
        yield Run(place, min(place + PIECE_BYTES, stop))
