"""Decoding of chunks, with checks of stored bytes, base words and results."""

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
    """Return the error for a checkpoint or model that is not the base of the delta.

    Args:
        reader: The delta.
        path: Path of the base; ``None`` for tensors in memory.
        tensor: Name of the base tensor; ``None`` if the problem concerns no single tensor.
        problem: What is wrong with it, as a predicate.
    """
    manifest = reader.manifest
    expected = f"the base with digest {manifest.base_digest[:12]}"
    if manifest.repo:
        expected = f"{manifest.repo} at commit {manifest.revision}"
    msg = f"{problem}; wrong base: the delta needs {printable(expected)}"
    name = None if tensor is None else printable(tensor)
    return BaseMismatchError(msg, file=path, tensor=name)


def check_sources(reader: DeltaReader, base: Checkpoint) -> None:
    """Check that the base has all sources, with the dtypes and lengths that the delta needs.

    Raises:
        BaseMismatchError: A source is missing or does not match.
    """
    for t in reader.index.tensors:
        if t.kind in (Kind.SAME, Kind.DELTA):
            source = base.tensors.get(t.origin)
            if source is None:
                raise wrong_base(reader, base.path, t.origin, "is missing from the base")
            if source.dtype is not t.coded_dtype:
                problem = f"is {source.dtype.code} in the base, not {t.coded_dtype.code}"
                raise wrong_base(reader, base.path, t.origin, problem)
            shared = t.nbytes if t.coding is None else t.coding.nbytes(t.shared)
            is_exact = t.kind is Kind.SAME
            if source.nbytes < shared or (is_exact and source.nbytes != shared):
                problem = f"has {source.nbytes} bytes in the base, not {shared}"
                raise wrong_base(reader, base.path, t.origin, problem)


@dataclass(frozen=True, slots=True)
class OpenChunk:
    """A chunk after its stored bytes were read, checked and decompressed.

    Attributes:
        tensor: Its tensor.
        chunk: Its record.
        rows: Its active rows; ``None`` without row flags.
        content: Its streams; empty if it is stored whole.
        whole: Its bytes if it is stored whole, else ``None``.
    """

    tensor: TensorRecord
    chunk: ChunkRecord
    rows: Rows | None
    content: bytes | memoryview
    whole: NDArray[np.uint8] | None

    @property
    def coding(self) -> WordCoding:
        """Word coding of its tensor."""
        assert self.tensor.coding is not None  # noqa: S101 - a tensor with chunks has one
        return self.tensor.coding


class ChunkDecoder:
    """Decodes the chunks of a delta, on any thread.

    Args:
        reader: The delta.
        base: Path of the base, for errors; ``None`` for tensors in memory.
        verify: Whether to check stored bytes, base words and results.
        memory: Memory of the words; main memory by default.

    Attributes:
        memory: Memory of the words.
    """

    def __init__(
        self,
        reader: DeltaReader,
        base: Path | None,
        *,
        verify: bool = True,
        memory: Memory | None = None,
    ) -> None:
        self._reader = reader
        self._base = base
        self._verify = verify
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
            chunk: Its record.
            data: The source's bytes of the chunk, in the decoder's memory. They may be overwritten.
                Ignored for a chunk that is stored whole.
            base_leaves: Leaf hashes of ``data``; computed if ``None``.

        Returns:
            The bytes of the tuned words before any widening, and their leaf hashes; ``None``
            without verification.

        Raises:
            FormatError: The delta is damaged, or ``data`` is from a wrong base.
        """
        leaves = None if base_leaves is None else [base_leaves]
        return self.join([self.open(t, chunk)], [data], leaves)[0]

    def open(self, t: TensorRecord, chunk: ChunkRecord) -> OpenChunk:
        """Read and decompress the stored bytes of a chunk.

        Raises:
            FormatError: The delta is damaged.
        """
        with self._error_context(t):
            stored = self._reader.stored(chunk, checked=self._verify)
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
            row_offset = None if row is None else (row, chunk.first % row)
            rows, content = open_chunk(coded, chunk.length, t.coding, row_offset)
            return OpenChunk(t, chunk, rows, content, None)

    def join(
        self,
        chunks: Sequence[OpenChunk],
        data: Sequence[Bytes],
        base_leaves: Sequence[NDArray[np.uint64]] | None = None,
    ) -> list[tuple[Bytes, NDArray[np.uint64] | None]]:
        """Decode a batch of open chunks.

        Args:
            chunks: The chunks.
            data: The source's bytes of each chunk, as for :meth:`decode`.
            base_leaves: Leaf hashes of ``data``; computed if ``None``.

        Returns:
            For each chunk, the result of :meth:`decode`.

        Raises:
            FormatError: The delta is damaged, or ``data`` is from a wrong base.
        """
        results = list(data)
        deltas = [i for i, chunk in enumerate(chunks) if chunk.whole is None]
        if self._verify and deltas:
            leaves = base_leaves or self.memory.leaf_hashes(data)
            for i in deltas:
                self.check_base(chunks[i].tensor, chunks[i].chunk, leaves[i])
        for coding in {chunks[i].coding for i in deltas}:
            indices = [i for i in deltas if chunks[i].coding == coding]
            self._join(chunks, results, indices, coding)
        for i, chunk in enumerate(chunks):
            if chunk.whole is not None:
                results[i] = self.memory.from_host(chunk.whole)
        if not self._verify:
            return [(result, None) for result in results]
        leaves = self.memory.leaf_hashes(results)
        for chunk, chunk_leaves in zip(chunks, leaves, strict=True):
            if leaves_check(chunk_leaves) != chunk.chunk.result:
                with self._error_context(chunk.tensor):
                    msg = "a decoded chunk does not match its digest; the delta is damaged"
                    raise ResultMismatchError(msg)
        return list(zip(results, leaves, strict=True))

    def _join(
        self,
        chunks: Sequence[OpenChunk],
        data: list[Bytes],
        indices: list[int],
        coding: WordCoding,
    ) -> None:
        """Decode the chunks at some indices, all of one word coding, in place in ``data``."""
        words = [self.memory.words(data[i], coding.width) for i in indices]
        coded = [
            CodedWords(
                chunk_words,
                np.array(chunks[i].chunk.bounds, np.uint64),
                chunks[i].rows,
                list(chunks[i].chunk.changed),
                chunks[i].content,
            )
            for i, chunk_words in zip(indices, words, strict=True)
        ]
        problems = self.memory.backend.join(coded, coding)
        for i, chunk_words, problem in zip(indices, words, problems, strict=True):
            if problem is not None:
                with self._error_context(chunks[i].tensor):
                    raise problem
            data[i] = self.memory.to_bytes(chunk_words, coding.width)

    @contextmanager
    def _error_context(self, t: TensorRecord) -> Iterator[None]:
        """Add file and tensor to errors that lack them."""
        try:
            yield
        except FormatError as error:
            error.file = error.file or self._reader.path
            error.tensor = error.tensor or printable(t.name)
            raise

    def check_base(self, t: TensorRecord, chunk: ChunkRecord, leaves: NDArray[np.uint64]) -> None:
        """Check the leaf hashes of a chunk's base words.

        Raises:
            BaseMismatchError: The words differ from those that the chunk was encoded against.
        """
        if leaves_check(leaves) != chunk.base:
            raise wrong_base(self._reader, self._base, t.origin, "has different values")
