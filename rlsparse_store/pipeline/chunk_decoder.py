"""One chunk at a time: stored bytes and base words in, tuned words out, each of them checked."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.codec.chunk import DeltaChunk, decode_whole, open_chunk
from rlsparse_store.errors import BaseMismatchError, FormatError, ResultMismatchError
from rlsparse_store.format.digests import leaves_check
from rlsparse_store.format.index.records import ChunkCoding, Kind
from rlsparse_store.format.names import printable
from rlsparse_store.format.words import to_bytes
from rlsparse_store.kernels.interface import CodedWords
from rlsparse_store.pipeline.memory import MainMemory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord
    from rlsparse_store.kernels.interface import Rows
    from rlsparse_store.pipeline.memory import Bytes, Memory

__all__ = ["ChunkDecoder", "OpenChunk", "check_sources", "wrong_base"]


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
    msg = f"{problem}; this is not the base of the delta, which was made against {printable(known)}"
    name = None if tensor is None else printable(tensor)
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


@dataclass(frozen=True, slots=True)
class OpenChunk:
    """A chunk whose stored bytes were read, checked and decompressed.

    Attributes:
        tensor: Its tensor.
        chunk: The chunk.
        rows: Its active rows, if it has row flags.
        content: Its streams behind those.
        whole: Its bytes, if it is stored whole.
    """

    tensor: TensorRecord
    chunk: ChunkRecord
    rows: Rows | None
    content: bytes | memoryview
    whole: NDArray[np.uint8] | None

    @property
    def coding(self) -> WordCoding:
        """The word coding of its tensor."""
        assert self.tensor.coding is not None  # noqa: S101 - a tensor with chunks has one
        return self.tensor.coding


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
        opened = self.open(t, chunk)
        known = None if base_leaves is None else [base_leaves]
        return self.join([opened], [data], known)[0]

    def open(self, t: TensorRecord, chunk: ChunkRecord) -> OpenChunk:
        """Read and decompress what is stored of a chunk.

        Raises:
            FormatError: The delta is damaged.
        """
        with self._naming(t):
            stored = self._reader.stored(chunk, checked=self._checked)
            assert t.coding is not None  # noqa: S101 - the index was checked
            if chunk.coding is ChunkCoding.WHOLE:
                words = decode_whole(stored, chunk.length, t.coding)
                return OpenChunk(t, chunk, None, b"", to_bytes(words, t.coding.width))
            coded = DeltaChunk(
                stored=stored,
                has_row_flags=chunk.coding is ChunkCoding.DELTA_WITH_ROWS,
                bounds=chunk.bounds,
                changed=chunk.changed,
                steps=(),
            )
            row = t.row_words
            place = None if row is None else (row, chunk.first % row)
            rows, content = open_chunk(coded, chunk.length, t.coding, place)
            return OpenChunk(t, chunk, rows, content, None)

    def join(
        self,
        chunks: Sequence[OpenChunk],
        data: Sequence[Bytes],
        base_leaves: Sequence[NDArray[np.uint64]] | None = None,
    ) -> list[tuple[Bytes, NDArray[np.uint64] | None]]:
        """Decode chunks that were opened, as :meth:`decode` does, together.

        Args:
            chunks: The chunks.
            data: The source's bytes of each.
            base_leaves: Their leaf hashes, if known.

        Raises:
            FormatError: The delta is damaged, or ``data`` is not of the right base.
        """
        made = list(data)
        deltas = [i for i, opened in enumerate(chunks) if opened.whole is None]
        if self._checked and deltas:
            known = base_leaves or self.memory.leaf_hashes(data)
            for i in deltas:
                self.check_base(chunks[i].tensor, chunks[i].chunk, known[i])
        for coding in {chunks[i].coding for i in deltas}:
            self._join(chunks, made, [i for i in deltas if chunks[i].coding == coding], coding)
        for i, opened in enumerate(chunks):
            if opened.whole is not None:
                made[i] = self.memory.from_main(opened.whole)
        if not self._checked:
            return [(part, None) for part in made]
        leaves = self.memory.leaf_hashes(made)
        for opened, found in zip(chunks, leaves, strict=True):
            if leaves_check(found) != opened.chunk.result:
                with self._naming(opened.tensor):
                    msg = "a decoded chunk does not have its check; the delta is damaged"
                    raise ResultMismatchError(msg)
        return list(zip(made, leaves, strict=True))

    def _join(
        self,
        chunks: Sequence[OpenChunk],
        data: list[Bytes],
        places: list[int],
        coding: WordCoding,
    ) -> None:
        """Decode the chunks at some places, all of one word coding."""
        words = [self.memory.words(data[i], coding.width) for i in places]
        coded = [
            CodedWords(
                own,
                np.array(chunks[i].chunk.bounds, np.uint64),
                chunks[i].rows,
                list(chunks[i].chunk.changed),
                chunks[i].content,
            )
            for i, own in zip(places, words, strict=True)
        ]
        problems = self.memory.backend.join(coded, coding)
        for i, own, problem in zip(places, words, problems, strict=True):
            if problem is not None:
                with self._naming(chunks[i].tensor):
                    raise problem
            data[i] = self.memory.to_bytes(own, coding.width)

    @contextmanager
    def _naming(self, t: TensorRecord) -> Iterator[None]:
        """Name file and tensor in errors that do not."""
        try:
            yield
        except FormatError as error:
            error.file = error.file or self._reader.path
            error.tensor = error.tensor or printable(t.name)
            raise

    def check_base(self, t: TensorRecord, chunk: ChunkRecord, leaves: NDArray[np.uint64]) -> None:
        """Require that base words with these leaf hashes are the ones a chunk was made from.

        Raises:
            BaseMismatchError: They are not.
        """
        if leaves_check(leaves) != chunk.base:
            problem = "has other values in the base"
            raise wrong_base(self._reader, self._base, t.origin, problem)
