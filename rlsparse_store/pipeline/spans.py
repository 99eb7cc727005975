"""Coding a stretch of a tensor: base and tuned side by side, chunks out, leaf hashes on the way.

A span is what one thread does from reading to compressing, so that the words it looks at several
times stay in its cache. Within a span, blocks of 2^20 words are compared; a chunk starts at a
block with changes and is closed once it holds enough of them, so that changes, not words, decide
how large it is, but for a few blocks that it has unless they hold very many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec.chunk import (
    CodedChunk,
    DeltaChunk,
    decode_delta,
    decode_whole,
    encode_chunk,
    encode_whole,
    estimate_bits,
)
from rlsparse_store.errors import ResultMismatchError
from rlsparse_store.format.digests import LEAF_BYTES, leaf_hashes, leaves_check
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.format.index.records import row_words
from rlsparse_store.format.limits import MAX_CHUNK_WORDS
from rlsparse_store.format.words import as_words, cast_to_bf16, narrow, to_bytes
from rlsparse_store.kernels.interface import Changes, ChunkWords
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES, TensorPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.format.words import Words
    from rlsparse_store.kernels.interface import CpuBackend
    from rlsparse_store.pipeline.scratch import Scratch, ScratchBuffer

__all__ = [
    "BLOCK_WORDS",
    "BaseWindow",
    "ChunkExtent",
    "CodedSpan",
    "Span",
    "SpanChunk",
    "choose_word_coding",
    "chunk_extents",
    "encode_span",
    "proof_failed",
    "spans_of",
]

BLOCK_WORDS: Final = 1 << 20
"""Words compared at a time."""

ENOUGH_CHANGES: Final = 1 << 17
"""Changed words that close a chunk of ``ENOUGH_BLOCKS`` or more."""

ENOUGH_BLOCKS: Final = 4
"""Blocks that a chunk has, unless it has many changes: what is done once for a chunk is then little
beside what is done for its words."""

MANY_CHANGES: Final = 1 << 19
"""Changed words that close a chunk of fewer blocks."""

SPAN_BYTES: Final = 1 << 27
"""Bytes of words in a span, and so the most in a chunk: 64 blocks of 16-bit words."""

WHOLE_BLOCKS: Final = 8
"""Blocks of a span that is stored whole, whose chunks are a block each."""

_PACKED: Final = {
    "I32": (WordCoding(4, OrderMap.UNSIGNED),),
    "U8": (WordCoding(4, OrderMap.UNSIGNED),),
}
"""Dtypes in which quantized models pack several small numbers: other codings worth trying."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a tensor, in bytes of the dtype that is coded: the source's.

    Attributes:
        tensor: Place of the tensor.
        plan: How it is stored.
        coding: Word coding.
        start: First byte, a multiple of a block.
        stop: Byte after the last one, of the longer of source and tuned.
        base_leaves: Leaf hashes of its base bytes, if they are known; else they are computed.
    """

    tensor: int
    plan: TensorPlan
    coding: WordCoding
    start: int
    stop: int
    base_leaves: NDArray[np.uint64] | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that it reads."""
        return (self.stop - self.start) * (1 if self.plan.source is None else 2)

    @property
    def mantissa_bits(self) -> int | None:
        """Mantissa bits of the dtype that is coded, where its own words are."""
        coded = self.plan.source.dtype if self.plan.source is not None else self.plan.dtype
        return coded.mantissa_bits if self.coding == coded.coding else None

    @property
    def row(self) -> int | None:
        """Words of a row of the tensor, or ``None`` where rows mean nothing."""
        words = self.coding.num_words(self.plan.coded_nbytes)
        return row_words(self.plan.tuned.shape, words)

    @property
    def tuned_stop(self) -> int:
        """Where the tuned bytes of the span end."""
        return max(self.start, min(self.stop, self.plan.coded_nbytes))

    @property
    def shared_stop(self) -> int:
        """Where the bytes end that source and tuned share."""
        return max(self.start, min(self.stop, self.plan.shared_bytes))


@dataclass(frozen=True, slots=True)
class SpanChunk:
    """A coded chunk and what the index says of it.

    Attributes:
        first: Its first word.
        length: Its words.
        chunk: What is stored.
        base_check: Check of the base words; 0 where none are needed to decode it.
        result_check: Check of the result words.
        changed: Changed words; none where there is no source.
    """

    first: int
    length: int
    chunk: CodedChunk
    base_check: int
    result_check: int
    changed: int


@dataclass(frozen=True, slots=True)
class CodedSpan:
    """A span, encoded.

    Attributes:
        span: The span.
        chunks: Its chunks, in order.
        tuned_leaves: Leaf hashes of the tuned tensor's bytes as they are stored.
        base_leaves: Leaf hashes of the base's bytes.
    """

    span: Span
    chunks: list[SpanChunk]
    tuned_leaves: NDArray[np.uint64]
    base_leaves: NDArray[np.uint64]


def spans_of(
    tensor: int,
    plan: TensorPlan,
    coding: WordCoding,
    base_leaves: NDArray[np.uint64] | None = None,
) -> Iterator[Span]:
    """The spans of one tensor, in order.

    Args:
        tensor: Number of the tensor.
        plan: How it is stored.
        coding: Word coding.
        base_leaves: Leaf hashes of all of its source, if they are known.
    """
    if plan.alias_of is not None:
        return
    source = 0 if plan.source is None else plan.source.nbytes
    most = min(SPAN_BYTES, coding.nbytes(MAX_CHUNK_WORDS))
    if plan.source is None:
        most = coding.nbytes(WHOLE_BLOCKS * BLOCK_WORDS)
    end = max(source, plan.coded_nbytes)
    for start in range(0, end, most):
        stop = min(start + most, end)
        known = base_leaves
        if known is not None:
            known = known[start // LEAF_BYTES : -(-min(stop, source) // LEAF_BYTES)]
        yield Span(tensor, plan, coding, start, stop, known)


class BaseWindow:
    """The base's bytes of a span, read block by block, and hashed unless their hashes are known.

    Args:
        base: The base.
        span: The span.
        buffer: Where the bytes go.
    """

    def __init__(self, base: Checkpoint, span: Span, buffer: ScratchBuffer) -> None:
        self._base = base
        self._source: TensorRef | None = span.plan.source
        self._start = span.start
        self._stop = span.start
        if self._source is not None:
            self._stop = max(span.start, min(span.stop, self._source.nbytes))
        self._bytes = buffer.take(self._stop - self._start)
        self._origin = self._read_to = self._start
        self._known = span.base_leaves
        self._leaves: list[NDArray[np.uint64]] = []

    def block(self, start: int, nbytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Read the next block, from byte ``start`` on, and return it with its leaf hashes.

        It is shorter than ``nbytes`` where the source ends.
        """
        stop = max(start, min(start + nbytes, self._stop))
        fresh = self.view(start, stop)
        leaves = np.zeros(0, np.uint64)
        if stop > start:
            assert self._source is not None  # noqa: S101 - it has bytes
            self._base.read_into(self._source, start, fresh)
            leaves = leaf_hashes(fresh) if self._known is None else self._known_leaves(start, stop)
            self._leaves.append(leaves)
            self._read_to = stop
        return fresh, leaves

    def _known_leaves(self, start: int, stop: int) -> NDArray[np.uint64]:
        assert self._known is not None  # noqa: S101 - the caller looked
        first, end = start - self._start, stop - self._start
        return self._known[first // LEAF_BYTES : -(-end // LEAF_BYTES)]

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes that were read and not forgotten."""
        return self._bytes[start - self._origin : stop - self._origin]

    def forget(self) -> None:
        """Begin at the front of the buffer again."""
        self._origin = self._read_to

    def leaves(self) -> NDArray[np.uint64]:
        """Leaf hashes of all of the span's base bytes, once every block was asked for."""
        return np.concatenate([*self._leaves, np.zeros(0, np.uint64)])


def encode_span(
    backend: CpuBackend, span: Span, base: Checkpoint, tuned: Checkpoint, scratch: Scratch
) -> CodedSpan:
    """Encode a span and prove that it decodes to the same words.

    Args:
        backend: Runs the loops.
        span: The span.
        base: The base.
        tuned: The tuned checkpoint.
        scratch: Memory of this thread.

    Raises:
        ResultMismatchError: What was coded does not decode to itself: bad memory, or a defect of
            a library.
    """
    return _SpanEncoder(backend, span, base, tuned, scratch).run()


def choose_word_coding(
    plan: TensorPlan, base: Checkpoint, tuned: Checkpoint, backend: CpuBackend
) -> WordCoding:
    """The word coding of a tensor: its dtype's own, unless packed numbers code shorter."""
    dtype = plan.source.dtype if plan.source is not None else plan.dtype
    others = _PACKED.get(dtype.code, ())
    if plan.source is None or not others or plan.tuned.nbytes % 4:
        return dtype.coding
    for start in range(0, plan.shared_bytes, PIECE_BYTES):
        nbytes = min(PIECE_BYTES, plan.shared_bytes - start)
        before = base.read(plan.source, start, nbytes)
        after = tuned.read(plan.tuned, start, nbytes)
        if not np.array_equal(before, after):
            return min(
                (dtype.coding, *others),
                key=lambda coding: estimate_bits(
                    backend,
                    as_words(before, coding.width),
                    as_words(after, coding.width),
                    coding,
                    None,
                ),
            )
    return dtype.coding


@dataclass(slots=True)
class ChunkExtent:
    """What becomes a chunk: from the first block with changes to the last.

    Attributes:
        start: Its first byte, or word.
        stop: Where the last block with changes ends.
        blocks: Its blocks.
        number: Changed words in them.
        top_key: The largest key of a base word that changed.
    """

    start: int
    stop: int
    blocks: int = 0
    number: int = 0
    top_key: int = 0

    @property
    def changes(self) -> Changes:
        """What changed in them."""
        return Changes(self.number, self.top_key)


class Chunker:
    """Decides where chunks begin and end, from what changed in each block of a span."""

    def __init__(self) -> None:
        self._open: ChunkExtent | None = None
        self._blocks = 0

    @property
    def is_open(self) -> bool:
        """Whether a chunk has begun and is not closed."""
        return self._open is not None

    @property
    def is_full(self) -> bool:
        """Whether it has enough changes to be closed."""
        if self._open is None:
            return False
        enough = MANY_CHANGES if self._blocks < ENOUGH_BLOCKS else ENOUGH_CHANGES
        return self._open.number >= enough

    def add(self, start: int, stop: int, changes: Changes) -> bool:
        """Add the next block, and tell whether it belongs to a chunk, perhaps."""
        if self._open is None:
            if changes.number == 0:
                return False
            self._open, self._blocks = ChunkExtent(start, stop), 0
        self._blocks += 1
        self._open.number += changes.number
        self._open.top_key = max(self._open.top_key, changes.top_key)
        if changes.number:
            # Blocks behind the last one with changes are dropped.
            self._open.stop, self._open.blocks = stop, self._blocks
        return True

    def close(self) -> ChunkExtent | None:
        """The chunk that is open, if one is. The next block with changes begins another."""
        closed, self._open = self._open, None
        return closed


def chunk_extents(blocks: Iterable[Changes], size: int, end: int) -> Iterator[ChunkExtent]:
    """What becomes chunks, from what changed in each block of a run.

    Args:
        blocks: The blocks' changes, in order.
        size: How long a block is, in any unit: places of what is found are in it, too.
        end: How long the run is; its last block may be shorter.
    """
    cutter = Chunker()
    for number, changes in enumerate(blocks):
        cutter.add(number * size, min((number + 1) * size, end), changes)
        if cutter.is_full and (full := cutter.close()) is not None:
            yield full
    if (last := cutter.close()) is not None:
        yield last


class _SpanEncoder:
    """The state of coding one span."""

    def __init__(
        self, backend: CpuBackend, span: Span, base: Checkpoint, tuned: Checkpoint, scratch: Scratch
    ) -> None:
        self._backend = backend
        self._span = span
        self._plan = span.plan
        self._coding = span.coding
        self._base = BaseWindow(base, span, scratch.base)
        self._tuned = tuned
        self._mantissa_bits = span.mantissa_bits
        self._row = span.row
        self._bytes = scratch.tuned.take(span.tuned_stop - span.start)
        self._origin = span.start
        self._cutter = Chunker()
        self._open_leaves: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []
        self._chunks: list[SpanChunk] = []
        self._tuned_leaves: list[NDArray[np.uint64]] = []

    def run(self) -> CodedSpan:
        """Code block by block."""
        span = self._span
        size = self._coding.nbytes(BLOCK_WORDS)
        for start in range(span.start, span.stop, size):
            old, old_leaves = self._base.block(start, size)
            stop = max(start, min(start + size, span.tuned_stop))
            shared = max(start, min(stop, span.shared_stop))
            new, wide = self._read_tuned(start, stop)
            changes = Changes(0, 0)
            if shared > start:
                changes = self._changes(old[: shared - start], new[: shared - start])
            same = changes.number == 0 and shared == stop and old.size == new.size
            new_leaves = old_leaves if same else leaf_hashes(new)
            self._tuned_leaves.append(new_leaves if wide is None else leaf_hashes(wide))
            if shared < start + old.size:
                old_leaves = leaf_hashes(old[: shared - start])
            if shared > start:
                leaves = new_leaves if shared == stop else leaf_hashes(new[: shared - start])
                self._grow(start, shared, changes, old_leaves, leaves)
            if shared < stop:
                self._close()
                self._store_whole(shared, stop)
            if not self._cutter.is_open:
                self._base.forget()
                self._origin = stop
        self._close()
        empty = np.zeros(0, np.uint64)
        tuned_leaves = np.concatenate([*self._tuned_leaves, empty])
        return CodedSpan(span, self._chunks, tuned_leaves, self._base.leaves())

    def _read_tuned(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Tuned bytes in the dtype that is coded, and in their own if they will be widened."""
        plan, new = self._plan, self._view(start, stop)
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

    def _view(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._bytes[start - self._origin : stop - self._origin]

    def _changes(self, old: NDArray[np.uint8], new: NDArray[np.uint8]) -> Changes:
        width = self._coding.width
        return self._backend.changes(as_words(old, width), as_words(new, width), self._coding)

    def _grow(
        self,
        start: int,
        stop: int,
        changes: Changes,
        base_leaves: NDArray[np.uint64],
        tuned_leaves: NDArray[np.uint64],
    ) -> None:
        """Add a block to the open chunk, or open one if the block has changes."""
        if self._cutter.add(start, stop, changes):
            self._open_leaves.append((base_leaves, tuned_leaves))
        if self._cutter.is_full:
            self._close()

    def _close(self) -> None:
        """Code the open chunk, if there is one."""
        chunk = self._cutter.close()
        if chunk is None:
            return
        leaves, self._open_leaves = self._open_leaves[: chunk.blocks], []
        coding, stop = self._coding, chunk.stop
        base = as_words(self._base.view(chunk.start, stop), coding.width)
        tuned = as_words(self._view(chunk.start, stop), coding.width)
        first = coding.num_words(chunk.start)
        row = None if self._row is None else (self._row, first % self._row)
        words = ChunkWords(base, tuned, row, chunk.changes)
        coded = encode_chunk(self._backend, words, coding, self._mantissa_bits)
        base_leaves = np.concatenate([of_base for of_base, _ in leaves])
        tuned_leaves = np.concatenate([of_tuned for _, of_tuned in leaves])
        base_check, result_check = 0, leaves_check(tuned_leaves)
        if isinstance(coded, DeltaChunk):
            # In place: the base's words are not needed again.
            out = base
            decode_delta(self._backend, base, coding, coded, row, out)
            base_check = leaves_check(base_leaves)
        else:
            out = decode_whole(coded.stored, tuned.size, coding)
        self._require_equal(out, tuned_leaves)
        number = chunk.number
        self._chunks.append(SpanChunk(first, tuned.size, coded, base_check, result_check, number))

    def _store_whole(self, start: int, stop: int) -> None:
        coding = self._coding
        data = self._view(start, stop)
        tuned = as_words(data, coding.width)
        chunk = encode_whole(self._backend, tuned, coding)
        leaves = leaf_hashes(data)
        self._require_equal(decode_whole(chunk.stored, tuned.size, coding), leaves)
        first = coding.num_words(start)
        self._chunks.append(SpanChunk(first, tuned.size, chunk, 0, leaves_check(leaves), 0))

    def _require_equal(self, decoded: Words, leaves: NDArray[np.uint64]) -> None:
        """Require that words have these leaf hashes, as whoever decodes them will."""
        if not np.array_equal(leaf_hashes(to_bytes(decoded, self._coding.width)), leaves):
            raise proof_failed(self._plan)


def proof_failed(plan: TensorPlan) -> ResultMismatchError:
    """The error for a chunk that does not decode to what was encoded."""
    msg = "what was encoded does not decode to itself; the memory may be faulty"
    return ResultMismatchError(msg, tensor=plan.tuned.name)
