"""Decoding: the tuned tensors of a delta, piece by piece, each piece checked."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.backends import Backend, get_backend
from rlsparse_store.codec import (
    DeltaChunk,
    as_words,
    decode_delta,
    decode_whole,
    to_bytes,
    widen,
)
from rlsparse_store.container import ChunkCoding, ChunkRecord, DeltaReader, Kind, TensorRecord
from rlsparse_store.delta.pipeline import ordered_map
from rlsparse_store.delta.sources import PIECE_BYTES
from rlsparse_store.digest import TensorDigester, leaf_hashes, leaves_check
from rlsparse_store.errors import BaseMismatchError, FormatError, ResultMismatchError
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.checkpoint import Checkpoint, TensorRef

__all__ = ["DecodedPiece", "check_sources", "decode_tensors"]


@dataclass(frozen=True, slots=True)
class DecodedPiece:
    """Some bytes of a tuned tensor.

    Attributes:
        tensor: The tensor.
        offset: Position of the bytes in its data.
        data: The bytes.
    """

    tensor: TensorRecord
    offset: int
    data: NDArray[np.uint8]


@dataclass(slots=True)
class _Run:
    """A run of words: what is read of the base, and the chunk that changes it, if one does."""

    tensor: TensorRecord
    first: int
    base: NDArray[np.uint8] | None
    chunk: ChunkRecord | None
    stored: bytes = b""
    extra: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def held_bytes(self) -> int:
        """Bytes it keeps in memory, the result included."""
        return 2 * (0 if self.base is None else self.base.nbytes) + len(self.stored)


def check_sources(reader: DeltaReader, base: Checkpoint) -> None:
    """Require that the base has every source, in the right dtype and of the right length.

    Raises:
        BaseMismatchError: It has not.
    """
    for t in reader.index.tensors:
        if t.kind in (Kind.SAME, Kind.DELTA):
            source = base.tensors.get(t.origin)
            if source is None:
                raise wrong_base(reader, base, t.origin, "is missing from the base")
            if source.dtype is not t.coded_dtype:
                found = f"is {source.dtype.code} in the base, not {t.coded_dtype.code}"
                raise wrong_base(reader, base, t.origin, found)
            shared = t.nbytes if t.coding is None else t.coding.nbytes(t.shared)
            exact = t.kind is Kind.SAME
            if source.nbytes < shared or (exact and source.nbytes != shared):
                found = f"has {source.nbytes} bytes in the base, not {shared}"
                raise wrong_base(reader, base, t.origin, found)


def wrong_base(
    reader: DeltaReader, base: Checkpoint, tensor: str | None, problem: str
) -> BaseMismatchError:
    """The error for a base that is not the one the delta was made against."""
    manifest = reader.manifest
    known = f"{manifest.repo} at commit {manifest.revision}" if manifest.repo else "another one"
    msg = f"{problem}; this is not the base of the delta, which was made against {shown(known)}"
    name = None if tensor is None else shown(tensor)
    return BaseMismatchError(msg, file=base.path, tensor=name)


def decode_tensors(reader: DeltaReader, base: Checkpoint, threads: int) -> Iterator[DecodedPiece]:
    """Decode every tensor but aliases, in order, checking everything on the way.

    Stored bytes, base words and result words of each chunk are checked before it is handed out;
    the digests of each source and each tensor once they are complete.

    Raises:
        FormatError: The delta is damaged, or the base is not the right one.
    """
    check_sources(reader, base)
    backend = get_backend()
    digests = _Digests(reader, base)

    def work(run: _Run) -> tuple[_Run, NDArray[np.uint8]]:
        return run, _decode_run(reader, base, backend, run)

    runs = _with_digests(_runs(reader, base), digests)
    for run, data in ordered_map(work, runs, threads):
        wide = run.tensor.dtype.bits // run.tensor.coded_dtype.bits
        coding = run.tensor.coding or run.tensor.dtype.coding
        digests.add_result(run.tensor, data)
        yield DecodedPiece(run.tensor, coding.nbytes(run.first) * wide, data)
    digests.finish()


class _Digests:
    """The digests of sources and results, each compared as soon as it is complete."""

    def __init__(self, reader: DeltaReader, base: Checkpoint) -> None:
        self._reader = reader
        self._base = base
        self._source: tuple[TensorRecord, TensorDigester] | None = None
        self._result: tuple[TensorRecord, TensorDigester] | None = None

    def begin(self, t: TensorRecord | None) -> None:
        """Begin a tensor: the source of the one before is complete."""
        if self._source is not None and self._source[0] is not t:
            self._finish_source()

    def add_source(self, t: TensorRecord, data: NDArray[np.uint8]) -> None:
        """Add base bytes of a tensor's source, in order."""
        if self._source is None:
            self._source = (t, TensorDigester(self._base.tensors[t.origin].nbytes))
        self._source[1].add(data)

    def add_result(self, t: TensorRecord, data: NDArray[np.uint8]) -> None:
        """Add result bytes of a tensor, in order."""
        if self._result is None or self._result[0] is not t:
            self._finish_result()
            self._result = (t, TensorDigester(t.nbytes))
        self._result[1].add(data)

    def finish(self) -> None:
        """Compare the last result."""
        self._finish_result()

    def _finish_source(self) -> None:
        if self._source is None:
            return
        t, digester = self._source
        self._source = None
        expected = t.base_digest if t.kind is Kind.DELTA else t.tuned_digest
        if digester.digest() != expected:
            raise wrong_base(self._reader, self._base, t.origin, "has other values in the base")

    def _finish_result(self) -> None:
        if self._result is None:
            return
        t, digester = self._result
        self._result = None
        if digester.digest() != t.tuned_digest:
            msg = "the decoded tensor does not have its digest; the delta is damaged"
            raise ResultMismatchError(msg, file=self._reader.path, tensor=shown(t.name))


def _with_digests(runs: Iterator[_Run], digests: _Digests) -> Iterator[_Run]:
    for run in runs:
        # A wrong base is found here, before a result that it would spoil is compared.
        digests.begin(run.tensor)
        if run.tensor.kind in (Kind.SAME, Kind.DELTA):
            if run.base is not None:
                digests.add_source(run.tensor, run.base)
            digests.add_source(run.tensor, run.extra)
        yield run
    digests.begin(None)


def _runs(reader: DeltaReader, base: Checkpoint) -> Iterator[_Run]:
    chunks: defaultdict[int, list[ChunkRecord]] = defaultdict(list)
    for chunk in reader.index.chunks:
        chunks[chunk.tensor].append(chunk)
    for number, t in enumerate(reader.index.tensors):
        if t.kind is not Kind.ALIAS:
            yield from _tensor_runs(reader, base, t, chunks.get(number, []))


_NO_WORDS: Final = np.zeros(0, np.uint8)


def _tensor_runs(
    reader: DeltaReader, base: Checkpoint, t: TensorRecord, chunks: list[ChunkRecord]
) -> Iterator[_Run]:
    source = base.tensors[t.origin] if t.kind in (Kind.SAME, Kind.DELTA) else None
    coding = t.coding or t.dtype.coding
    place = 0
    for chunk in chunks:
        yield from _copies(base, t, source, place, chunk.first)
        end = chunk.first + chunk.length
        stored = reader.stored(chunk)
        data = None
        if source is not None and chunk.first < t.shared:
            start = coding.nbytes(chunk.first)
            data = base.read(source, start, coding.nbytes(min(end, t.shared)) - start)
        yield _Run(t, chunk.first, data, chunk, stored)
        place = end
    yield from _copies(base, t, source, place, t.words)
    yield _Run(t, t.words, _NO_WORDS, None)
    if source is not None:
        # A source may be longer than what is shared of it, and its digest covers all of it.
        for rest in range(coding.nbytes(t.shared), source.nbytes, PIECE_BYTES):
            extra = base.read(source, rest, min(PIECE_BYTES, source.nbytes - rest))
            yield _Run(t, t.words, _NO_WORDS, None, extra=extra)


def _copies(
    base: Checkpoint, t: TensorRecord, source: TensorRef | None, start: int, end: int
) -> Iterator[_Run]:
    """Runs of words that are the source's own."""
    if source is None or start >= end:
        return
    coding = t.coding or t.dtype.coding
    step = coding.num_words(PIECE_BYTES)
    for first in range(start, end, step):
        nbytes = coding.nbytes(min(step, end - first))
        data = base.read(source, coding.nbytes(first), nbytes)
        yield _Run(t, first, data, None)


def _decode_run(
    reader: DeltaReader, base: Checkpoint, backend: Backend, run: _Run
) -> NDArray[np.uint8]:
    """The tuned bytes of a run."""
    t, chunk = run.tensor, run.chunk
    data = run.base if run.base is not None else _NO_WORDS
    if chunk is not None:
        try:
            data = _decode_chunk(reader, base, backend, run, chunk)
        except FormatError as error:
            error.file = error.file or reader.path
            error.tensor = error.tensor or shown(t.name)
            raise
        if leaves_check(leaf_hashes(data)) != chunk.result:
            msg = "a decoded chunk does not have its check; the delta is damaged"
            raise ResultMismatchError(msg, file=reader.path, tensor=shown(t.name))
    if t.widening:
        return widen(data.view(np.uint16), t.widening).view(np.uint8)
    return data


def _decode_chunk(
    reader: DeltaReader, base: Checkpoint, backend: Backend, run: _Run, chunk: ChunkRecord
) -> NDArray[np.uint8]:
    t = run.tensor
    assert t.coding is not None  # noqa: S101 - the index was checked
    if chunk.coding is ChunkCoding.WHOLE:
        words = decode_whole(run.stored, chunk.length, t.coding)
        return to_bytes(words, t.coding.width)
    assert run.base is not None  # noqa: S101 - a delta chunk lies in the shared part
    if leaves_check(leaf_hashes(run.base)) != chunk.base:
        raise wrong_base(reader, base, t.origin, "has other values in the base")
    row = t.row_words
    coded = DeltaChunk(
        stored=run.stored,
        has_row_flags=chunk.coding is ChunkCoding.DELTA_WITH_ROWS,
        bounds=chunk.bounds,
        changed=chunk.changed,
        steps=(),
    )
    before = as_words(run.base, t.coding.width)
    place = None if row is None else (row, chunk.first % row)
    return to_bytes(decode_delta(backend, before, t.coding, coded, place), t.coding.width)
