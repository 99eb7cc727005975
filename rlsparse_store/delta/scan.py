"""Walking base and tuned side by side: chunks out, digests on the way.

Blocks of 2^20 words are compared as bytes. A chunk starts at a block with changes and is closed
once it holds enough changes, so that changes, not words, decide how large it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.codec import (
    CodedChunk,
    DeltaChunk,
    WholeChunk,
    as_words,
    cast_to_bf16,
    decode_delta,
    decode_whole,
    encode_chunk,
    encode_whole,
    estimate_bits,
    narrow,
)
from rlsparse_store.container import row_words
from rlsparse_store.delta.sources import PIECE_BYTES, TensorPlan
from rlsparse_store.digest import LEAF_BYTES, TensorDigester, leaf_hashes, leaves_check
from rlsparse_store.dtypes import OrderMap, WordCoding
from rlsparse_store.errors import ResultMismatchError
from rlsparse_store.limits import MAX_CHUNK_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.backends import Backend, Words
    from rlsparse_store.checkpoint import Checkpoint

__all__ = ["Coded", "Piece", "TensorScan", "code_piece", "scan_tensor"]

BLOCK_WORDS: Final = 1 << 20
"""Words compared at a time."""

ENOUGH_CHANGES: Final = 1 << 17
"""Changed words that close a chunk."""

LARGEST_CHUNK: Final = 1 << 27
"""Bytes of words that close a chunk: 64 blocks of 16-bit words."""

_PACKED: Final = {
    "I32": (WordCoding(4, OrderMap.UNSIGNED),),
    "U8": (WordCoding(4, OrderMap.UNSIGNED),),
}
"""Dtypes in which quantized models pack several small numbers: other codings worth trying."""


@dataclass(slots=True)
class Piece:
    """A run of words to be coded.

    Attributes:
        tensor: Place of its tensor.
        name: The tensor's name, for messages.
        first: Its first word.
        coding: Word coding.
        mantissa_bits: Of a floating-point dtype.
        row: Words of a row and the place of the first word in its row, if rows mean something.
        base: The source's bytes; ``None`` to store the words whole.
        tuned: The tuned bytes, in the source's dtype.
        base_leaves: Leaf hashes of ``base``.
        tuned_leaves: Leaf hashes of ``tuned``.
        changed: Changed words.
    """

    tensor: int
    name: str
    first: int
    coding: WordCoding
    mantissa_bits: int | None
    row: tuple[int, int] | None
    base: NDArray[np.uint8] | None
    tuned: NDArray[np.uint8]
    base_leaves: NDArray[np.uint64]
    tuned_leaves: NDArray[np.uint64]
    changed: int

    @property
    def held_bytes(self) -> int:
        """Bytes of words it keeps in memory."""
        return self.tuned.nbytes + (0 if self.base is None else self.base.nbytes)


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded piece and what the index says of it.

    Attributes:
        tensor: Place of its tensor.
        first: Its first word.
        length: Its words.
        chunk: What is stored.
        base_check: Check of the base words.
        result_check: Check of the result words.
        changed: Changed words; none where there is no source.
    """

    tensor: int
    first: int
    length: int
    chunk: CodedChunk
    base_check: int
    result_check: int
    changed: int


@dataclass(slots=True)
class TensorScan:
    """What scanning a tensor found out, complete once its pieces are exhausted.

    Attributes:
        coding: Word coding of its pieces.
        words: Words of the tensor.
        changed: Changed words of the shared part.
        tuned_digest: Digest of its data.
        base_digest: Digest of its source's data.
    """

    coding: WordCoding
    words: int = 0
    changed: int = 0
    tuned_digest: bytes = b""
    base_digest: bytes = b""


def code_piece(backend: Backend, piece: Piece) -> Coded:
    """Code a piece and prove that it decodes to the same words.

    Raises:
        ResultMismatchError: It does not: bad memory, or a defect of a library.
    """
    coding = piece.coding
    tuned = as_words(piece.tuned, coding.width)
    chunk: CodedChunk
    if piece.base is None:
        chunk = encode_whole(tuned, coding)
        base_check = 0
    else:
        base = as_words(piece.base, coding.width)
        chunk = encode_chunk(backend, base, tuned, coding, piece.mantissa_bits, piece.row)
        base_check = leaves_check(piece.base_leaves)
        if isinstance(chunk, DeltaChunk):
            _require_equal(decode_delta(backend, base, coding, chunk, piece.row), tuned, piece)
    if isinstance(chunk, WholeChunk):
        _require_equal(decode_whole(chunk.stored, tuned.size, coding), tuned, piece)
    return Coded(
        tensor=piece.tensor,
        first=piece.first,
        length=tuned.size,
        chunk=chunk,
        base_check=base_check,
        result_check=leaves_check(piece.tuned_leaves),
        changed=piece.changed,
    )


def _require_equal(decoded: Words, tuned: Words, piece: Piece) -> None:
    if not np.array_equal(decoded, tuned):
        msg = "what was encoded does not decode to itself; the memory may be faulty"
        raise ResultMismatchError(msg, tensor=piece.name)


def scan_tensor(
    number: int,
    plan: TensorPlan,
    base: Checkpoint,
    tuned: Checkpoint,
    backend: Backend,
    scan: TensorScan,
) -> Iterator[Piece]:
    """Yield the pieces of one tensor that must be stored, and fill in ``scan``.

    Args:
        number: Place of the tensor.
        plan: How it is stored.
        base: The base.
        tuned: The tuned checkpoint.
        backend: Counts changes.
        scan: Receives what was found.
    """
    return _Scanner(number, plan, base, tuned, backend, scan).pieces()


def choose_coding(
    plan: TensorPlan, base: Checkpoint, tuned: Checkpoint, backend: Backend
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


class _Scanner:
    """The state of one tensor's scan."""

    def __init__(
        self,
        number: int,
        plan: TensorPlan,
        base: Checkpoint,
        tuned: Checkpoint,
        backend: Backend,
        scan: TensorScan,
    ) -> None:
        self._number = number
        self._plan = plan
        self._base = base
        self._tuned = tuned
        self._backend = backend
        self._scan = scan
        coded = plan.source.dtype if plan.source is not None else plan.dtype
        self._mantissa_bits = coded.mantissa_bits if scan.coding == coded.coding else None
        self._nbytes = plan.stored_nbytes // (2 if plan.widening else 1)
        scan.words = scan.coding.num_words(self._nbytes)
        self._row = row_words(plan.tuned.shape, scan.words)
        self._largest_chunk = min(LARGEST_CHUNK, scan.coding.nbytes(MAX_CHUNK_WORDS))
        self._tuned_digest = TensorDigester(plan.stored_nbytes)

    def pieces(self) -> Iterator[Piece]:
        """All pieces: those of the shared part, then those of the rest."""
        if self._plan.source is not None:
            yield from self._shared_pieces()
        block = self._scan.coding.nbytes(BLOCK_WORDS)
        for start in range(self._plan.shared_bytes, self._nbytes, block):
            data = self._read_tuned(start, min(block, self._nbytes - start))
            none = np.zeros(0, np.uint64)
            yield self._piece(start, None, data, none, leaf_hashes(data), 0)
        self._scan.tuned_digest = self._tuned_digest.digest()

    def _read_tuned(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Tuned bytes in the dtype that is coded; those that will be stored are digested."""
        plan = self._plan
        if not (plan.widening or plan.is_cast):
            data = self._tuned.read(plan.tuned, start, nbytes)
        else:
            wide = self._tuned.read(plan.tuned, 2 * start, 2 * nbytes)
            if plan.widening:
                self._tuned_digest.add(wide)
                words = narrow(wide.view(np.uint32), plan.widening)
                assert words is not None  # noqa: S101 - the plan checked every word
                return words.view(np.uint8)
            data = cast_to_bf16(wide.view(np.uint32)).view(np.uint8)
        self._tuned_digest.add(data)
        return data

    def _shared_pieces(self) -> Iterator[Piece]:
        plan, shared = self._plan, self._plan.shared_bytes
        assert plan.source is not None  # noqa: S101 - the caller asked
        base_digest = TensorDigester(plan.source.nbytes)
        block = self._scan.coding.nbytes(BLOCK_WORDS)
        place = 0
        while place < shared:
            # Memory that is never touched costs nothing, so room for the largest chunk is free.
            room = min(shared - place, self._largest_chunk)
            before, after = np.empty(room, np.uint8), np.empty(room, np.uint8)
            base_leaves, tuned_leaves = [], []
            start, filled, changed, ends = place, 0, 0, 0
            while filled < room and changed < ENOUGH_CHANGES:
                size = min(block, room - filled)
                old, new = before[filled : filled + size], after[filled : filled + size]
                moved, leaves = self._read_block(place, old, new)
                if size % LEAF_BYTES:
                    # The source may go on beyond what is shared, within the same leaf.
                    base_digest.add(old)
                else:
                    base_digest.add_leaves(leaves[0])
                place += size
                if not (moved or changed):
                    start = place
                    room = min(room, shared - place)
                    continue
                filled += size
                changed += moved
                base_leaves.append(leaves[0])
                tuned_leaves.append(leaves[1])
                if moved:
                    ends = filled
            if changed:
                blocks = -(-ends // block)
                yield self._piece(
                    start,
                    before[:ends],
                    after[:ends],
                    np.concatenate(base_leaves[:blocks]),
                    np.concatenate(tuned_leaves[:blocks]),
                    changed,
                )
                self._scan.changed += changed
        for rest in range(shared, plan.source.nbytes, PIECE_BYTES):
            size = min(PIECE_BYTES, plan.source.nbytes - rest)
            base_digest.add(self._base.read(plan.source, rest, size))
        self._scan.base_digest = base_digest.digest()

    def _read_block(
        self, place: int, old: NDArray[np.uint8], new: NDArray[np.uint8]
    ) -> tuple[int, tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
        """Read a block of both, and return its changed words and leaf hashes."""
        plan = self._plan
        assert plan.source is not None  # noqa: S101 - the caller asked
        self._base.read_into(plan.source, place, old)
        new[:] = self._read_tuned(place, new.size)
        width = self._scan.coding.width
        base_leaves = leaf_hashes(old)
        moved = self._backend.count_changed(as_words(old, width), as_words(new, width))
        tuned_leaves = leaf_hashes(new) if moved else base_leaves
        return moved, (base_leaves, tuned_leaves)

    def _piece(
        self,
        start: int,
        base: NDArray[np.uint8] | None,
        tuned: NDArray[np.uint8],
        base_leaves: NDArray[np.uint64],
        tuned_leaves: NDArray[np.uint64],
        changed: int,
    ) -> Piece:
        first = self._scan.coding.num_words(start)
        return Piece(
            tensor=self._number,
            name=self._plan.tuned.name,
            first=first,
            coding=self._scan.coding,
            mantissa_bits=self._mantissa_bits,
            row=None if self._row is None else (self._row, first % self._row),
            base=base,
            tuned=tuned,
            base_leaves=base_leaves,
            tuned_leaves=tuned_leaves,
            changed=changed,
        )
