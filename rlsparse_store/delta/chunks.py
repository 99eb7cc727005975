"""One chunk at a time: stored bytes and base words in, tuned words out, each of them checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.codec import DeltaChunk, decode_delta, decode_whole, to_bytes
from rlsparse_store.container import ChunkCoding, Kind
from rlsparse_store.digest import leaves_check
from rlsparse_store.errors import BaseMismatchError, FormatError, ResultMismatchError
from rlsparse_store.frameworks import MainMemory
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.checkpoint import Checkpoint
    from rlsparse_store.container import ChunkRecord, DeltaReader, TensorRecord
    from rlsparse_store.frameworks import Bytes, Memory

__all__ = ["ChunkDecoder", "check_sources", "wrong_base"]


def wrong_base(
    reader: DeltaReader, path: Path | None, tensor: str | None, problem: str
) -> BaseMismatchError:
    """The error for a base that is not the one the delta was made against.

    Args:
        reader: The delta.
        path: Where the base lies, if it lies in files.
        tensor: The base tensor concerned, if one is.
        problem: What is wrong with it.
    """
    manifest = reader.manifest
    known = f"{manifest.repo} at commit {manifest.revision}" if manifest.repo else "another one"
    msg = f"{problem}; this is not the base of the delta, which was made against {shown(known)}"
    name = None if tensor is None else shown(tensor)
    return BaseMismatchError(msg, file=path, tensor=name)


def check_sources(reader: DeltaReader, base: Checkpoint) -> None:
    """Require that the base has every source, in the right dtype and of the right length.

    Raises:
        BaseMismatchError: It has not.
    """
    for t in reader.index.tensors:
        if t.kind in (Kind.SAME, Kind.DELTA):
            source = base.tensors.get(t.origin)
            if source is None:
                raise wrong_base(reader, base.path, t.origin, "is missing from the base")
            if source.dtype is not t.coded_dtype:
                found = f"is {source.dtype.code} in the base, not {t.coded_dtype.code}"
                raise wrong_base(reader, base.path, t.origin, found)
            shared = t.nbytes if t.coding is None else t.coding.nbytes(t.shared)
            exact = t.kind is Kind.SAME
            if source.nbytes < shared or (exact and source.nbytes != shared):
                found = f"has {source.nbytes} bytes in the base, not {shared}"
                raise wrong_base(reader, base.path, t.origin, found)


class ChunkDecoder:
    """Decodes the chunks of a delta, on any thread.

    Args:
        reader: The delta.
        base: Where the base lies, for errors; ``None`` if it is in memory.
        checked: Whether stored bytes, base words and result words are compared with their checks.
        memory: Where the words lie; main memory by default.

    Attributes:
        memory: Where the words lie.
    """

    def __init__(
        self,
        reader: DeltaReader,
        base: Path | None,
        *,
        checked: bool = True,
        memory: Memory | None = None,
    ) -> None:
        self._reader = reader
        self._base = base
        self._checked = checked
        self.memory: Memory = MainMemory() if memory is None else memory

    def decode(
        self,
        t: TensorRecord,
        chunk: ChunkRecord,
        data: Bytes,
        base_leaves: NDArray[np.uint64] | None = None,
    ) -> tuple[Bytes, NDArray[np.uint64] | None]:
        """Decode a chunk.

        Args:
            t: Its tensor.
            chunk: The chunk.
            data: The source's bytes from the chunk's first word to its last, which are patched in
                place where they can be, in the decoder's memory; anything for a chunk that is
                stored whole.
            base_leaves: The leaf hashes of ``data``, if known.

        Returns:
            The bytes of the tuned words before any widening, and their leaf hashes if they were
            checked.

        Raises:
            FormatError: The delta is damaged, or ``data`` is not of the right base.
        """
        try:
            return self._decode(t, chunk, data, base_leaves)
        except FormatError as error:
            error.file = error.file or self._reader.path
            error.tensor = error.tensor or shown(t.name)
            raise

    def check_base(self, t: TensorRecord, chunk: ChunkRecord, leaves: NDArray[np.uint64]) -> None:
        """Require that base words with these leaf hashes are the ones a chunk was made from.

        Raises:
            BaseMismatchError: They are not.
        """
        if leaves_check(leaves) != chunk.base:
            problem = "has other values in the base"
            raise wrong_base(self._reader, self._base, t.origin, problem)

    def _decode(
        self,
        t: TensorRecord,
        chunk: ChunkRecord,
        data: Bytes,
        base_leaves: NDArray[np.uint64] | None,
    ) -> tuple[Bytes, NDArray[np.uint64] | None]:
        stored = self._reader.stored(chunk, checked=self._checked)
        assert t.coding is not None  # noqa: S101 - the index was checked
        memory, width = self.memory, t.coding.width
        if chunk.coding is ChunkCoding.WHOLE:
            words = decode_whole(stored, chunk.length, t.coding)
            data = memory.from_main(to_bytes(words, width))
        else:
            if self._checked:
                known = memory.leaf_hashes(data) if base_leaves is None else base_leaves
                self.check_base(t, chunk, known)
            row = t.row_words
            coded = DeltaChunk(
                stored=stored,
                has_row_flags=chunk.coding is ChunkCoding.DELTA_WITH_ROWS,
                bounds=chunk.bounds,
                changed=chunk.changed,
                steps=(),
            )
            base = memory.words(data, width)
            place = None if row is None else (row, chunk.first % row)
            decode_delta(memory.backend, base, t.coding, coded, place, base)
            data = memory.to_bytes(base, width)
        if not self._checked:
            return data, None
        leaves = memory.leaf_hashes(data)
        if leaves_check(leaves) != chunk.result:
            msg = "a decoded chunk does not have its check; the delta is damaged"
            raise ResultMismatchError(msg)
        return data, leaves
