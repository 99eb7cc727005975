"""Decoding of chunks, with checks of stored bytes, base words and results."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.chunk import decode_whole, open_chunk
from rlsparse_store.errors import BaseMismatchError, FormatError, ResultMismatchError
from rlsparse_store.format.digests import leaves_check
from rlsparse_store.format.index.records import ChunkCoding, Kind
from rlsparse_store.format.names import printable
from rlsparse_store.format.words import as_words, to_bytes
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.index.records import ChunkRecord, TensorRecord
    from rlsparse_store.kernels.interface import Rows

__all__ = ["ChunkDecoder", "OpenChunk", "check_sources", "check_stored_bytes", "wrong_base"]


STORED_BYTES: Final = 1 << 22
"""Stored bytes that one task checks."""


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


def check_stored_bytes(reader: DeltaReader, threads: int) -> None:
    """Check the checksums of all stored bytes of a delta.

    Args:
        reader: The delta.
        threads: Threads to read on.

    Raises:
        ChecksumError: A checksum differs.
    """

    def read(batch: Batch[ChunkRecord]) -> None:
        for chunk in batch.items:
            reader.stored(chunk)

    chunks = ((chunk, chunk.stored) for chunk in reader.index.chunks)
    for _ in ordered_map(read, batched(chunks, STORED_BYTES), threads):
        pass


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

    Attributes:
        verify: Whether stored bytes, base words and results are checked.
    """

    def __init__(self, reader: DeltaReader, base: Path | None, *, verify: bool = True) -> None:
        self._reader = reader
        self._base = base
        self._backend = get_backend()
        self.verify = verify

    def prefetch(self, chunks: Iterable[ChunkRecord]) -> None:
        """Fetch chunks that will be decoded, as :meth:`DeltaReader.prefetch` does."""
        self._reader.prefetch(chunks)

    def decode(
        self,
        t: TensorRecord,
        chunk: ChunkRecord,
        base: NDArray[np.uint8],
        out: NDArray[np.uint8],
        base_leaves: NDArray[np.uint64] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64] | None]:
        """Decode a chunk.

        Args:
            t: Its tensor.
            chunk: Its record.
            base: The source's bytes of the chunk. Ignored for a chunk that is stored whole.
            out: Memory for the result, as long as the chunk; may be ``base``.
            base_leaves: Leaf hashes of ``base``; computed if ``None``.

        Returns:
            The bytes of the tuned words before any widening: ``out``, or new memory for a chunk
            that is stored whole or has 4-bit words. And their leaf hashes; ``None`` without
            verification.

        Raises:
            FormatError: The delta is damaged, or ``base`` is from a wrong base.
        """
        opened = self.open(t, chunk)
        if opened.whole is not None:
            data = opened.whole
            leaves = self._backend.leaf_hashes(data) if self.verify else None
        else:
            if self.verify:
                expected = self._backend.leaf_hashes(base) if base_leaves is None else base_leaves
                self.check_base(t, chunk, expected)
            data, leaves = self._join(opened, base, out)
        if leaves is not None:
            self.check_result(t, chunk, leaves)
        return data, leaves

    def _join(
        self, opened: OpenChunk, base: NDArray[np.uint8], out: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64] | None]:
        """Decode the streams of a chunk against its base words, and hash the result to verify."""
        chunk, coding = opened.chunk, opened.coding
        words = as_words(base, coding.width)
        tuned = words if out is base or coding.width == 4 else as_words(out, coding.width)
        bounds, changed = np.array(chunk.bounds, np.uint64), list(chunk.changed)
        streams = (words, coding, bounds, opened.rows, changed, opened.content)
        leaves = None
        with self.error_context(opened.tensor):
            if self.verify:
                leaves = self._backend.apply_hashed(*streams, tuned)
            else:
                self._backend.apply(*streams, tuned)
        return to_bytes(tuned, coding.width), leaves

    def open(self, t: TensorRecord, chunk: ChunkRecord) -> OpenChunk:
        """Read and decompress the stored bytes of a chunk.

        Raises:
            FormatError: The delta is damaged.
        """
        with self.error_context(t):
            stored = self._reader.stored(chunk, checked=self.verify)
            assert t.coding is not None  # noqa: S101 - the index was checked
            if chunk.coding is ChunkCoding.WHOLE:
                words = decode_whole(stored, chunk.length, t.coding)
                return OpenChunk(t, chunk, None, b"", to_bytes(words, t.coding.width))
            rows, content = open_chunk(chunk, stored, t.coding, t.row_words)
            return OpenChunk(t, chunk, rows, content, None)

    @contextmanager
    def error_context(self, t: TensorRecord) -> Iterator[None]:
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

    def check_result(self, t: TensorRecord, chunk: ChunkRecord, leaves: NDArray[np.uint64]) -> None:
        """Check the leaf hashes of a decoded chunk.

        Raises:
            ResultMismatchError: The words differ from those that were encoded.
        """
        if leaves_check(leaves) != chunk.result:
            msg = "a decoded chunk does not match its digest; the delta is damaged"
            raise ResultMismatchError(msg, file=self._reader.path, tensor=printable(t.name))
