"""Encoding of spans: comparison of base and tuned words, chunks, and leaf hashes.

One thread processes a span from reading to compression, so that words it needs repeatedly stay in
its cache. It compares the span in blocks of 2^20 words. A chunk starts at a block with changes and
ends once it has enough changes, and a few blocks, unless those have very many changes: the number
of changes, not of words, decides the size of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rlsparse_store.codec.chunk import (
    EncodedChunk,
    decoded_leaves,
    encode_chunk,
    encode_whole,
    estimate_bits,
)
from rlsparse_store.errors import ResultMismatchError
from rlsparse_store.format.digests import LEAF_BYTES, leaves_check
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.format.index.records import ChunkCoding, row_words
from rlsparse_store.format.limits import MAX_CHUNK_WORDS
from rlsparse_store.format.words import as_words, cast_to_bf16, narrow, to_bytes
from rlsparse_store.kernels.interface import Changes, ChunkWords
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES, TensorPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import ChangeList, CpuBackend
    from rlsparse_store.pipeline.scratch import Scratch, ScratchBuffer

__all__ = [
    "BLOCK_WORDS",
    "BaseWindow",
    "ChunkExtent",
    "Chunker",
    "CodedSpan",
    "Span",
    "changed_error",
    "choose_word_coding",
    "chunk_extents",
    "encode_span",
    "encode_span_chunk",
    "roundtrip_error",
    "tensor_spans",
    "with_checks",
]

BLOCK_WORDS: Final = 1 << 20
"""Words per block."""

CHUNK_CHANGES: Final = 1 << 17
"""Changed words that end a chunk of at least ``CHUNK_BLOCKS`` blocks."""

CHUNK_BLOCKS: Final = 4
"""Minimum number of blocks in a chunk without many changes. It amortizes the cost per chunk."""

SHORT_CHUNK_CHANGES: Final = 1 << 19
"""Changed words that end a chunk of fewer blocks."""

SPAN_BYTES: Final = 1 << 27
"""Maximum size of a span, and so of a chunk, in bytes of words: 64 blocks of 16-bit words."""

WHOLE_BLOCKS: Final = 8
"""Blocks of a span that is stored whole, in chunks of one block."""

_PACKED: Final = {
    "I32": (WordCoding(4, OrderMap.UNSIGNED),),
    "U8": (WordCoding(4, OrderMap.UNSIGNED),),
}
"""Alternative codings of the dtypes in which quantized models pack several small numbers."""


class Span(NamedTuple):
    """The part of a tensor that one thread encodes. Offsets are in bytes of the coded dtype.

    Attributes:
        tensor: Number of the tensor.
        plan: How the tensor is stored.
        coding: Word coding.
        start: First byte, a multiple of the block size.
        stop: Byte after the last one, in the longer of source and tuned tensor.
        is_last: Whether it ends the tensor.
        base_leaves: Leaf hashes of its base bytes; computed if ``None``.
    """

    tensor: int
    plan: TensorPlan
    coding: WordCoding
    start: int
    stop: int
    is_last: bool
    base_leaves: NDArray[np.uint64] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it reads."""
        return (self.stop - self.start) * (1 if self.plan.source is None else 2)

    @property
    def is_plain_block(self) -> bool:
        """Whether it is one block, with a base word for each tuned word and nothing to convert."""
        plan = self.plan
        return (
            self.stop - self.start <= self.coding.nbytes(BLOCK_WORDS)
            and plan.source is not None
            and plan.source.nbytes == plan.shared_bytes == plan.tuned.nbytes
            and not plan.is_cast
        )

    @property
    def mantissa_bits(self) -> int | None:
        """Mantissa bits of the coded dtype; ``None`` under an alternative coding."""
        coded = self.plan.source.dtype if self.plan.source is not None else self.plan.dtype
        return coded.mantissa_bits if self.coding == coded.coding else None

    @property
    def row_words(self) -> int | None:
        """Words per row of the tensor; ``None`` if it has no rows."""
        words = self.coding.num_words(self.plan.coded_nbytes)
        return row_words(self.plan.tuned.shape, words)

    def chunk_words(self, start: int, base: NDArray[np.uint8], changes: ChangeList) -> ChunkWords:
        """Return the words of a chunk.

        Args:
            start: Its first byte.
            base: Its base bytes.
            changes: Its changed words; no later word has changed.
        """
        words, width = self.coding.num_words(len(base)), self.coding.width
        return ChunkWords(
            self.coding.num_words(start),
            as_words(base, width),
            self.row_words,
            changes.first(words),
        )

    @property
    def tuned_stop(self) -> int:
        """End of the tuned bytes of the span."""
        return max(self.start, min(self.stop, self.plan.coded_nbytes))

    @property
    def shared_stop(self) -> int:
        """End of the bytes that source and tuned tensor share."""
        return max(self.start, min(self.stop, self.plan.shared_bytes))


class CodedSpan(NamedTuple):
    """The encoding of a span.

    Attributes:
        span: The span.
        chunks: Its chunks, in order, with all of their records but the position in a file.
        tuned_leaves: Leaf hashes of the tuned tensor's bytes, as decoding returns them.
        base_leaves: Leaf hashes of the base bytes.
    """

    span: Span
    chunks: list[EncodedChunk]
    tuned_leaves: NDArray[np.uint64]
    base_leaves: NDArray[np.uint64]


def tensor_spans(
    tensor: int,
    plan: TensorPlan,
    coding: WordCoding,
    base_leaves: NDArray[np.uint64] | None = None,
    most: int = SPAN_BYTES,
) -> Iterator[Span]:
    """Yield the spans of one tensor, in order.

    Args:
        tensor: Number of the tensor.
        plan: How it is stored.
        coding: Word coding.
        base_leaves: Leaf hashes of all of its source; computed if ``None``.
        most: Maximum bytes of a span with base words, a multiple of the block size.
    """
    if plan.alias_of is not None:
        return
    source = 0 if plan.source is None else plan.source.nbytes
    size = min(most, coding.nbytes(MAX_CHUNK_WORDS))
    if plan.source is None:
        size = coding.nbytes(WHOLE_BLOCKS * BLOCK_WORDS)
    end = plan.end
    for start in range(0, end, size):
        stop = min(start + size, end)
        leaves = base_leaves
        if leaves is not None:
            leaves = leaves[start // LEAF_BYTES : -(-min(stop, source) // LEAF_BYTES)]
        yield Span(tensor, plan, coding, start, stop, stop == end, leaves)


class BaseWindow:
    """Reads the base bytes of a span block by block, and hashes them unless the hashes are known.

    Args:
        backend: Hashes the bytes.
        base: The base.
        span: The span.
        buffer: Memory of the bytes.
    """

    def __init__(
        self, backend: CpuBackend, base: Checkpoint, span: Span, buffer: ScratchBuffer
    ) -> None:
        self._backend = backend
        self._base = base
        self._source: TensorRef | None = span.plan.source
        self._start = span.start
        self._stop = span.start
        if self._source is not None:
            self._stop = max(span.start, min(span.stop, self._source.nbytes))
        self._bytes = buffer.take(self._stop - self._start)
        self._buffer_start = self._read_to = self._start
        self._known = span.base_leaves
        self._leaves: list[NDArray[np.uint64]] = []

    def block(self, start: int, nbytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Read the next block, from byte ``start`` on, and return it with its leaf hashes.

        The block is shorter than ``nbytes`` at the end of the source.
        """
        stop = max(start, min(start + nbytes, self._stop))
        block = self.view(start, stop)
        leaves = np.zeros(0, np.uint64)
        if stop > start:
            assert self._source is not None  # noqa: S101 - a span with base bytes has one
            self._base.read_into(self._source, start, block)
            if self._known is None:
                leaves = self._backend.leaf_hashes(block)
            else:
                leaves = self._known_leaves(start, stop)
            self._leaves.append(leaves)
            self._read_to = stop
        return block, leaves

    def _known_leaves(self, start: int, stop: int) -> NDArray[np.uint64]:
        assert self._known is not None  # noqa: S101 - the caller checked
        first, end = start - self._start, stop - self._start
        return self._known[first // LEAF_BYTES : -(-end // LEAF_BYTES)]

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes that were read since the last :meth:`reset`."""
        return self._bytes[start - self._buffer_start : stop - self._buffer_start]

    def reset(self) -> None:
        """Discard the bytes that were read, and reuse the buffer."""
        self._buffer_start = self._read_to

    def leaves(self) -> NDArray[np.uint64]:
        """Return the leaf hashes of all base bytes of the span, after the last block."""
        return np.concatenate([*self._leaves, np.zeros(0, np.uint64)])


def encode_span(
    backend: CpuBackend, span: Span, base: Checkpoint, tuned: Checkpoint, scratch: Scratch
) -> CodedSpan:
    """Encode a span and verify that it decodes to the same words.

    Args:
        backend: Runs the loops.
        span: The span.
        base: The base.
        tuned: The tuned checkpoint.
        scratch: Buffers of this thread.

    Raises:
        ResultMismatchError: A chunk does not decode to its words: faulty memory, or a defect of a
            library.
    """
    if span.is_plain_block:
        return _encode_plain_block(backend, span, base, tuned, scratch)
    return _SpanEncoder(backend, span, base, tuned, scratch).run()


def choose_word_coding(
    plan: TensorPlan, base: Checkpoint, tuned: Checkpoint, backend: CpuBackend
) -> WordCoding:
    """Choose the word coding of a tensor: its dtype's, unless a packed coding is smaller.

    Raises:
        ResultMismatchError: The words changed while they were compared.
    """
    dtype = plan.source.dtype if plan.source is not None else plan.dtype
    packed = _PACKED.get(dtype.code, ())
    if not packed or plan.source is None or plan.tuned.nbytes % 4:
        return dtype.coding
    for start in range(0, plan.shared_bytes, PIECE_BYTES):
        nbytes = min(PIECE_BYTES, plan.shared_bytes - start)
        before = base.read(plan.source, start, nbytes)
        after = tuned.read(plan.tuned, start, nbytes)
        if not np.array_equal(before, after):
            try:
                return min(
                    (dtype.coding, *packed),
                    key=lambda coding: estimate_bits(
                        backend,
                        as_words(before, coding.width),
                        as_words(after, coding.width),
                        coding,
                        None,
                    ),
                )
            except ValueError as error:  # as in encode_span_chunk
                raise roundtrip_error(plan) from error
    return dtype.coding


@dataclass(slots=True)
class ChunkExtent:
    """The extent of a chunk, from its first block with changes to its last.

    Attributes:
        start: Start, in bytes or words.
        stop: End of the last block with changes.
        blocks: Number of blocks.
        changed: Number of changed words.
        top_key: The largest key of a changed base word.
    """

    start: int
    stop: int
    blocks: int = 0
    changed: int = 0
    top_key: int = 0

    @property
    def changes(self) -> Changes:
        """Summary of the changes."""
        return Changes(self.changed, self.top_key)


class Chunker:
    """Divides a span into chunks by the changes of its blocks."""

    def __init__(self) -> None:
        self._open: ChunkExtent | None = None
        self._blocks = 0

    @property
    def is_open(self) -> bool:
        """Whether a chunk is open."""
        return self._open is not None

    @property
    def is_full(self) -> bool:
        """Whether the open chunk has enough changes."""
        if self._open is None:
            return False
        limit = SHORT_CHUNK_CHANGES if self._blocks < CHUNK_BLOCKS else CHUNK_CHANGES
        return self._open.changed >= limit

    def add(self, start: int, stop: int, changes: Changes) -> bool:
        """Add the next block, and return whether a chunk is open after it."""
        if self._open is None:
            if changes.count == 0:
                return False
            self._open, self._blocks = ChunkExtent(start, stop), 0
        self._blocks += 1
        self._open.changed += changes.count
        self._open.top_key = max(self._open.top_key, changes.top_key)
        if changes.count:
            # The chunk ends with its last block with changes.
            self._open.stop, self._open.blocks = stop, self._blocks
        return True

    def close(self) -> ChunkExtent | None:
        """Close and return the open chunk; ``None`` if none is open."""
        closed, self._open = self._open, None
        return closed


def chunk_extents(blocks: Iterable[Changes], size: int, end: int) -> Iterator[ChunkExtent]:
    """Yield the extents of chunks from the changes of blocks.

    Args:
        blocks: Changes of each block, in order.
        size: Length of a block, in the unit of the extents.
        end: Total length of the blocks. The last block may be shorter.
    """
    chunker = Chunker()
    for i, changes in enumerate(blocks):
        chunker.add(i * size, min((i + 1) * size, end), changes)
        if chunker.is_full and (full := chunker.close()) is not None:
            yield full
    if (last := chunker.close()) is not None:
        yield last


def _encode_plain_block(
    backend: CpuBackend, span: Span, base: Checkpoint, tuned: Checkpoint, scratch: Scratch
) -> CodedSpan:
    """Encode a span that is one plain block, as those of most small tensors are."""
    plan, start, nbytes = span.plan, span.start, span.stop - span.start
    assert plan.source is not None  # noqa: S101 - a plain block has one
    old, new = scratch.base.take(nbytes), scratch.tuned.take(nbytes)
    base.read_into(plan.source, start, old)
    base_leaves = span.base_leaves
    if base_leaves is None:
        base_leaves = backend.leaf_hashes(old)
    tuned.read_into(plan.tuned, start, new)
    width, changes = span.coding.width, scratch.changes
    changes.clear()
    if backend.compare(as_words(old, width), as_words(new, width), span.coding, changes).count == 0:
        _require_base_leaves(backend, span, new, base_leaves)
        return CodedSpan(span, [], base_leaves, base_leaves)
    leaves = backend.leaf_hashes(new)
    chunk = span.chunk_words(start, old, changes)
    return CodedSpan(
        span, [_encode_words(backend, span, chunk, base_leaves, leaves)], leaves, base_leaves
    )


def _encode_words(
    backend: CpuBackend,
    span: Span,
    chunk: ChunkWords,
    base_leaves: NDArray[np.uint64],
    tuned_leaves: NDArray[np.uint64],
) -> EncodedChunk:
    """Encode a chunk, and prove that it decodes to its words."""
    encoded = encode_span_chunk(backend, span, chunk)
    _require_base_leaves(backend, span, to_bytes(chunk.base, span.coding.width), base_leaves)
    _prove(backend, span, encoded, chunk.base, tuned_leaves)
    is_whole = encoded.record.coding is ChunkCoding.WHOLE
    return with_checks(encoded, span, None if is_whole else base_leaves, tuned_leaves)


def encode_span_chunk(backend: CpuBackend, span: Span, chunk: ChunkWords) -> EncodedChunk:
    """Encode a chunk of a span, without its proof.

    Raises:
        ResultMismatchError: A kernel found that changed words and their mask do not match.
    """
    try:
        return encode_chunk(backend, chunk, span.coding, span.mantissa_bits)
    except ValueError as error:
        raise roundtrip_error(span.plan) from error


def _encode_tail(
    backend: CpuBackend, span: Span, start: int, data: NDArray[np.uint8]
) -> EncodedChunk:
    """Store bytes that have no base words whole, and prove that they decode."""
    coding = span.coding
    words, leaves = as_words(data, coding.width), backend.leaf_hashes(data)
    encoded = encode_whole(backend, coding.num_words(start), words, coding)
    _prove(backend, span, encoded, words, leaves)
    return with_checks(encoded, span, None, leaves)


def with_checks(
    encoded: EncodedChunk,
    span: Span,
    base_leaves: NDArray[np.uint64] | None,
    tuned_leaves: NDArray[np.uint64],
) -> EncodedChunk:
    """Return a chunk with its tensor and its checks.

    Args:
        encoded: The chunk.
        span: Its span.
        base_leaves: Leaf hashes of its base words; ``None`` if decoding needs none.
        tuned_leaves: Leaf hashes of its result words.
    """
    base = 0 if base_leaves is None else leaves_check(base_leaves)
    record = encoded.record.checked(span.tensor, leaves_check(tuned_leaves), base)
    return EncodedChunk(record, encoded.stored, encoded.changes, encoded.steps)


def _require_base_leaves(
    backend: CpuBackend, span: Span, data: NDArray[np.uint8], leaves: NDArray[np.uint64]
) -> None:
    """Require that bytes have the leaf hashes of the base.

    With a base that changed in memory, a chunk decodes to the tuned words here alone.
    """
    if backend.leaf_hashes(data).tobytes() != leaves.tobytes():
        raise changed_error(span.plan)


def _prove(
    backend: CpuBackend,
    span: Span,
    encoded: EncodedChunk,
    base: Words,
    leaves: NDArray[np.uint64],
) -> None:
    """Require that a chunk decodes to words with these leaf hashes."""
    found = decoded_leaves(
        backend, encoded.record, encoded.stored, span.coding, span.row_words, base
    )
    # Faster than comparing arrays, where there are few.
    if found.tobytes() != leaves.tobytes():
        raise roundtrip_error(span.plan)


class _SpanEncoder:
    """Encodes one span."""

    def __init__(
        self, backend: CpuBackend, span: Span, base: Checkpoint, tuned: Checkpoint, scratch: Scratch
    ) -> None:
        self._backend = backend
        self._span = span
        self._plan = span.plan
        self._coding = span.coding
        self._base = BaseWindow(backend, base, span, scratch.base)
        self._tuned = tuned
        # Memory for the tuned bytes of one block. The changed words say what a chunk needs of them.
        self._block = scratch.tuned.take(
            min(span.tuned_stop - span.start, self._coding.nbytes(BLOCK_WORDS))
        )
        self._chunker = Chunker()
        self._changed = scratch.changes
        self._open_leaves: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []
        self._chunks: list[EncodedChunk] = []
        self._tuned_leaves: list[NDArray[np.uint64]] = []

    def run(self) -> CodedSpan:
        """Encode the span block by block."""
        span, hash_leaves = self._span, self._backend.leaf_hashes
        size = self._coding.nbytes(BLOCK_WORDS)
        for start in range(span.start, span.stop, size):
            old, old_leaves = self._base.block(start, size)
            stop = max(start, min(start + size, span.tuned_stop))
            shared = max(start, min(stop, span.shared_stop))
            new, wide = self._read_tuned(start, stop)
            changes = Changes(0, 0)
            if shared > start:
                changes = self._changes(old[: shared - start], new[: shared - start])
            same = changes.count == 0 and shared == stop and old.size == new.size
            new_leaves = hash_leaves(new)
            if same and new_leaves.tobytes() != old_leaves.tobytes():
                raise changed_error(self._plan)
            self._tuned_leaves.append(new_leaves if wide is None else hash_leaves(wide))
            if shared < start + old.size:
                old_leaves = hash_leaves(old[: shared - start])
            if shared > start:
                leaves = new_leaves if shared == stop else hash_leaves(new[: shared - start])
                self._add_block(start, shared, changes, old_leaves, leaves)
            if shared < stop:
                self._close()
                data = new[shared - start :]
                self._chunks.append(_encode_tail(self._backend, span, shared, data))
            if not self._chunker.is_open:
                self._base.reset()
        self._close()
        empty = np.zeros(0, np.uint64)
        tuned_leaves = np.concatenate([*self._tuned_leaves, empty])
        return CodedSpan(span, self._chunks, tuned_leaves, self._base.leaves())

    def _read_tuned(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Read tuned bytes; return them in the coded dtype, and as read if decoding widens them."""
        plan, new = self._plan, self._block[: stop - start]
        if not (plan.widening or plan.is_cast):
            self._tuned.read_into(plan.tuned, start, new)
            return new, None
        wide = self._tuned.read(plan.tuned, 2 * start, 2 * (stop - start))
        if plan.widening:
            words = narrow(wide.view(np.uint32), plan.widening)
            assert words is not None  # noqa: S101 - the plan checked every word
            new[:] = words.view(np.uint8)
            return new, wide
        new[:] = cast_to_bf16(wide.view(np.uint32)).view(np.uint8)
        return new, None

    def _changes(self, old: NDArray[np.uint8], new: NDArray[np.uint8]) -> Changes:
        """Compare a block, and append its changed words to those of the open chunk."""
        if not self._chunker.is_open:
            self._changed.clear()
        coding = self._coding
        base, tuned = as_words(old, coding.width), as_words(new, coding.width)
        return self._backend.compare(base, tuned, coding, self._changed)

    def _add_block(
        self,
        start: int,
        stop: int,
        changes: Changes,
        base_leaves: NDArray[np.uint64],
        tuned_leaves: NDArray[np.uint64],
    ) -> None:
        """Add a block to the open chunk, or open a chunk if the block has changes."""
        if self._chunker.add(start, stop, changes):
            self._open_leaves.append((base_leaves, tuned_leaves))
        if self._chunker.is_full:
            self._close()

    def _close(self) -> None:
        """Encode the open chunk, if any."""
        chunk = self._chunker.close()
        if chunk is None:
            return
        leaves, self._open_leaves = self._open_leaves[: chunk.blocks], []
        base = self._base.view(chunk.start, chunk.stop)
        words = self._span.chunk_words(chunk.start, base, self._changed)
        base_leaves = np.concatenate([base for base, _ in leaves])
        tuned_leaves = np.concatenate([tuned for _, tuned in leaves])
        self._chunks.append(
            _encode_words(self._backend, self._span, words, base_leaves, tuned_leaves)
        )


def changed_error(plan: TensorPlan) -> ResultMismatchError:
    """Return the error for words that changed after they were hashed."""
    msg = "the base's words changed after they were hashed; the file changed, or memory is faulty"
    return ResultMismatchError(msg, tensor=plan.tuned.name)


def roundtrip_error(plan: TensorPlan) -> ResultMismatchError:
    """Return the error for a chunk that does not decode to its words."""
    msg = "a chunk does not decode to the words it was encoded from; the memory may be faulty"
    return ResultMismatchError(msg, tensor=plan.tuned.name)
