"""Reading a tuned tensor from front to back, its bytes made of base and delta as it is read."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.codec import widen
from rlsparse_store.container import ChunkCoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.container import ChunkRecord, TensorRecord
    from rlsparse_store.delta.chunks import ChunkDecoder

__all__ = ["TensorCursor"]


class TensorCursor:
    """The bytes of one tuned tensor. For one thread; it keeps the chunk it stopped in.

    Args:
        t: The tensor, which is no alias.
        chunks: Its chunks, in order.
        base: The base.
        source: The tensor of the base that it comes from, if it does from one.
        decoder: Decodes the chunks.
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
        self._coding = t.coding or t.dtype.coding
        # Of each byte of a chunk's words, so many bytes of the tensor.
        self._scale = 2 if t.widening else 1
        self._ends = [self._place(chunk.first + chunk.length) for chunk in chunks]
        self._held: tuple[ChunkRecord, NDArray[np.uint8]] | None = None

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the tensor's bytes from byte ``start`` on.

        Only the chunks that these bytes touch are decoded, each of them once as long as calls go
        from front to back.

        Raises:
            FormatError: The delta is damaged, or the base is not the right one.
            RlsparseError: A file was cut short or cannot be read.
        """
        place, end = start, start + out.size
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

    def _copy(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with bytes that no chunk changes."""
        self._finish(self._from_base(start // self._scale, self._room(out)), out)

    def _patch(self, chunk: ChunkRecord, skip: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with bytes of a chunk, from its byte ``skip`` on."""
        nbytes = self._place(chunk.length)
        if out.size == nbytes:
            self._finish(self._decode(chunk, self._room(out)), out)
            return
        if self._held is None or self._held[0] is not chunk:
            whole = np.empty(nbytes, np.uint8)
            self._finish(self._decode(chunk, self._room(whole)), whole)
            self._held = (chunk, whole)
        out[:] = self._held[1][skip : skip + out.size]

    def _decode(self, chunk: ChunkRecord, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The words of a chunk before any widening, in ``room`` if they can be made there."""
        if chunk.coding is not ChunkCoding.WHOLE:
            self._from_base(self._coding.nbytes(chunk.first), room)
        return self._decoder.decode(self._tensor, chunk, room)[0]

    def _from_base(self, start: int, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        assert self._source is not None  # noqa: S101 - the index was checked
        self._base.read_into(self._source, start, room)
        return room

    def _room(self, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Where the source's bytes for ``out`` go: there, unless they have to grow."""
        return out if self._scale == 1 else np.empty(out.size // self._scale, np.uint8)

    def _finish(self, data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Bring words to their place, unless they were made there."""
        if self._tensor.widening:
            out.view(np.uint32)[:] = widen(data.view(np.uint16), self._tensor.widening)
        elif data is not out and not np.shares_memory(data, out):
            out[:] = data
