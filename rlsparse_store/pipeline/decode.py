"""Decoding of all tuned tensors of a delta, in segments, with checks of each."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rlsparse_store.errors import ResultMismatchError, RlsparseError
from rlsparse_store.format.digests import (
    LEAF_BYTES,
    HashLeaves,
    TensorDigester,
    digest_of_leaves,
)
from rlsparse_store.format.index.records import Kind, TensorRecord
from rlsparse_store.format.names import printable
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder, check_sources, wrong_base
from rlsparse_store.pipeline.decode_small import (
    SmallTensor,
    Write,
    decode_small,
    small_tensor,
)
from rlsparse_store.pipeline.overlay import Overlay, Segment, find_source, pieces
from rlsparse_store.pipeline.scratch import Scratch
from rlsparse_store.pipeline.threads import SMALL_TASK, Batch, batched, ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.pipeline.progress import Progress
    from rlsparse_store.pipeline.scratch import ScratchBuffer

__all__ = ["decode_tensors"]


class _Task(NamedTuple):
    """A segment of a tensor to decode.

    A tensor ends with tasks for the part of its source that it does not share. One without bytes
    has one empty task.

    Attributes:
        overlay: Its tensor.
        segment: The segment.
        base_nbytes: Number of its base bytes. They may extend beyond the tensor's end.
        is_end: Whether it ends the tensor.
    """

    overlay: Overlay
    segment: Segment
    base_nbytes: int
    is_end: bool

    @property
    def nbytes(self) -> int:
        """Bytes that it reads, about."""
        chunk = self.segment.chunk
        if chunk is None:
            return self.base_nbytes + self.segment.nbytes // 2
        return self.base_nbytes + chunk.length + chunk.stored


class _DigestInput(NamedTuple):
    """Input of a tensor's digest: leaf hashes, or bytes that are not whole leaves.

    Segments of other encoders need not be aligned to leaves.
    """

    leaves: NDArray[np.uint64] | None
    data: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        data: NDArray[np.uint8],
        start: int,
        end_of_data: int,
        leaves: NDArray[np.uint64] | None,
        hash_leaves: HashLeaves,
    ) -> _DigestInput:
        """Return the input for bytes at offset ``start`` of a tensor's data.

        Args:
            data: The bytes.
            start: Their offset.
            end_of_data: Size of the tensor's data in bytes.
            leaves: Leaf hashes of the bytes; computed if ``None``.
            hash_leaves: Computes them.
        """
        end = start + data.size
        if start % LEAF_BYTES or (end % LEAF_BYTES and end != end_of_data):
            return cls(None, data.copy())
        return cls(hash_leaves(data) if leaves is None else leaves, _NO_BYTES)

    def add_to(self, digester: TensorDigester) -> None:
        """Add the input to a digest."""
        if self.leaves is None:
            digester.add(self.data)
        else:
            digester.add_leaves(self.leaves)


class _Result(NamedTuple):
    """The result of a task: the number of bytes written, and the inputs of the digests."""

    task: _Task
    nbytes: int
    source: _DigestInput
    result: _DigestInput


class _BatchResult(NamedTuple):
    """The results of a batch.

    Attributes:
        results: Those of tasks, up to the first that failed.
        nbytes: Bytes of the small tensors that are decoded and checked.
        error: Why the task after the last result failed, if one did.
    """

    results: list[_Result]
    nbytes: int
    error: RlsparseError | None


_NO_BYTES: Final = np.zeros(0, np.uint8)

_NOTHING: Final = _DigestInput(None, _NO_BYTES)


def decode_tensors(
    reader: DeltaReader, base: Checkpoint, threads: int, write: Write, progress: Progress
) -> None:
    """Decode and check all tensors except aliases.

    Checks stored bytes, base words and result of each chunk before it calls ``write``. Checks the
    digests of each source and each tensor at its end.

    Args:
        reader: The delta.
        base: The base.
        threads: Threads to decode on.
        write: Receives the results.
        progress: Called with the bytes done and the total bytes.

    Raises:
        FormatError: The delta is damaged, or the base is wrong.
    """
    check_sources(reader, base)
    hash_leaves = get_backend().leaf_hashes
    digests, scratch = _Digests(reader, base, hash_leaves), Scratch()
    decoder = ChunkDecoder(reader, base.path)
    done, total = 0, reader.manifest.totals.tuned_bytes

    def run(batch: Batch[_Task | Batch[SmallTensor]]) -> _BatchResult:
        results: list[_Result] = []
        nbytes = 0
        try:
            for item in batch.items:
                if isinstance(item, _Task):
                    results.append(_run(item, scratch.base, write, hash_leaves))
                elif decode_small(reader, base, item, scratch.base, write):
                    nbytes += item.nbytes
                else:
                    # Not a comprehension: the results before an error are checked first.
                    for task in _single_tasks(item, decoder, base):
                        results.append(_run(task, scratch.base, write, hash_leaves))  # noqa: PERF401
        except RlsparseError as error:
            return _BatchResult(results, nbytes, error)
        return _BatchResult(results, nbytes, None)

    tasks = ((task, task.nbytes) for task in _tasks(reader, base, decoder))
    for decoded in ordered_map(run, batched(tasks, SMALL_TASK), threads):
        for result in decoded.results:
            digests.add(result)
            done += result.nbytes
        if decoded.error is not None:
            raise decoded.error
        done += decoded.nbytes
        progress(done, total)


class _Digests:
    """The digests of a source and its result, checked at the end of each tensor."""

    def __init__(self, reader: DeltaReader, base: Checkpoint, hash_leaves: HashLeaves) -> None:
        self._reader = reader
        self._base = base
        self._hash_leaves = hash_leaves
        self._tensor: TensorRecord | None = None
        self._source = self._result = TensorDigester(0)

    def add(self, result: _Result) -> None:
        """Add the result of the next task."""
        overlay = result.task.overlay
        t, source, decoded = overlay.tensor, result.source.leaves, result.result.leaves
        if t is not self._tensor:
            if result.task.is_end and source is not None and decoded is not None:
                # All of a small tensor.
                digest = digest_of_leaves(overlay.source_nbytes, source)
                is_same = decoded is source and t.nbytes == overlay.source_nbytes
                self._check(t, digest, digest if is_same else digest_of_leaves(t.nbytes, decoded))
                return
            self._tensor = t
            self._source = TensorDigester(overlay.source_nbytes, self._hash_leaves)
            self._result = TensorDigester(t.nbytes, self._hash_leaves)
        result.source.add_to(self._source)
        result.result.add_to(self._result)
        if result.task.is_end:
            self._check(t, self._source.digest(), self._result.digest())

    def _check(self, t: TensorRecord, source: bytes, result: bytes) -> None:
        """Check both digests, first the source: a wrong source makes the result wrong, too."""
        if t.kind in (Kind.SAME, Kind.DELTA):
            expected = t.base_digest if t.kind is Kind.DELTA else t.tuned_digest
            if source != expected:
                raise wrong_base(self._reader, self._base.path, t.origin, "has different values")
        if result != t.tuned_digest:
            msg = "the decoded tensor does not match its digest; the delta is damaged"
            raise ResultMismatchError(msg, file=self._reader.path, tensor=printable(t.name))


def _tasks(
    reader: DeltaReader, base: Checkpoint, decoder: ChunkDecoder
) -> Iterator[_Task | Batch[SmallTensor]]:
    """Yield tasks for all tensors in order; small ones of one coding are joined to batches."""
    chunks = reader.index.chunks_of_tensors()
    stored = (t for t in reader.index.tensors if t.kind is not Kind.ALIAS)
    found = ((t, small_tensor(t, chunks.get(t.name, []), base)) for t in stored)
    for coding, group in groupby(found, lambda pair: pair[1] and pair[1].coding):
        if coding is None:
            for t, _ in group:
                mine = chunks.get(t.name, [])
                yield from _tensor_tasks(Overlay(t, mine, find_source(t, base), decoder))
        else:
            small = ((tensor, t.nbytes) for t, tensor in group if tensor)
            yield from batched(small, SMALL_TASK // 2)


def _single_tasks(
    batch: Batch[SmallTensor], decoder: ChunkDecoder, base: Checkpoint
) -> Iterator[_Task]:
    """Yield a task for each tensor of a batch."""
    for t, chunk, _, _ in batch.items:
        chunks = [] if chunk is None else [chunk]
        yield from _tensor_tasks(Overlay(t, chunks, find_source(t, base), decoder))


def _tensor_tasks(overlay: Overlay) -> Iterator[_Task]:
    last: tuple[Segment, int] | None = None
    for part in _parts(overlay):
        if last is not None:
            yield _Task(overlay, *last, is_end=False)
        last = part
    yield _Task(overlay, *(last or (Segment(0, 0, None), 0)), is_end=True)


def _parts(overlay: Overlay) -> Iterator[tuple[Segment, int]]:
    """Yield the segments of a tensor, each with the number of its base bytes."""
    shared = overlay.shared_nbytes
    for segment in overlay.segments():
        if segment.chunk is None:
            for part in pieces(segment.start, segment.stop):
                yield part, part.nbytes
        else:
            yield segment, max(0, min(segment.stop, shared) - segment.start)
    # The digest covers all of a source, also the part that the tuned tensor does not share.
    for part in pieces(shared, overlay.source_nbytes):
        yield Segment(part.start, part.start, None), part.nbytes


def _run(task: _Task, buffer: ScratchBuffer, write: Write, hash_leaves: HashLeaves) -> _Result:
    """Read, decode and write a segment."""
    overlay, segment = task.overlay, task.segment
    t, start = overlay.tensor, segment.start
    data = buffer.take(task.base_nbytes)
    source = _NOTHING
    if task.base_nbytes:
        overlay.read_source(start, data)
        source = _DigestInput.of(data, start, overlay.source_nbytes, None, hash_leaves)
    if not segment.nbytes:
        return _Result(task, 0, source, _NOTHING)
    leaves = source.leaves
    if segment.chunk is not None:
        data, leaves = overlay.decode(segment, data, data, leaves)
    if t.widening:
        data, leaves, start = overlay.widen(data), None, 2 * start
    write(t, start, data)
    result = _DigestInput.of(data, start, t.nbytes, leaves, hash_leaves)
    return _Result(task, data.size, source, result)
