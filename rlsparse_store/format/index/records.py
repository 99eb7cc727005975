"""What an index says of tensors, chunks and files, as records."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from rlsparse_store.format.digests import TensorIdentity, state_digest
from rlsparse_store.format.dtypes import DTYPES, Dtype, WordCoding
from rlsparse_store.format.manifest import Totals
from rlsparse_store.format.words import Widening

__all__ = [
    "NO_STEPS",
    "STEP_BINS",
    "ChunkCoding",
    "ChunkRecord",
    "FileRecord",
    "FilesRecord",
    "Index",
    "Kind",
    "TensorRecord",
    "row_words",
]

STEP_BINS: Final = 8
NO_STEPS: Final = (0,) * STEP_BINS


class Kind(IntEnum):
    """Where a tensor's data comes from."""

    SAME = 0
    DELTA = 1
    WHOLE = 2
    ALIAS = 3


class ChunkCoding(IntEnum):
    """How a chunk is coded."""

    DELTA = 0
    WHOLE = 1
    DELTA_WITH_ROWS = 2


def row_words(shape: tuple[int, ...], words: int) -> int | None:
    """Words per row of a tensor, or ``None`` where rows mean nothing."""
    rows = math.prod(shape[:-1])
    if len(shape) < 2 or not words or words % rows:
        return None
    return words // rows


@dataclass(slots=True, eq=False)
class TensorRecord:
    """One tensor of the tuned checkpoint.

    Attributes:
        name: Its name.
        kind: Where its data comes from.
        dtype: Its dtype.
        shape: Its dimensions, in elements.
        coding: How its chunks cut it into words; ``None`` for kinds without chunks.
        widening: From the source's words to its own.
        origin: The source's name (``same``, ``delta``) or the target's (``alias``), else empty.
        tail: Words at the end that the source does not share.
        steps: Changed words of its delta chunks by step.
        moved: Changed words in whole chunks of the shared part.
        tuned_digest: Digest of its data; empty for an alias.
        base_digest: Digest of its source's data; empty but for kind ``delta``.
        nbytes: Bytes of its data; -1 if its shape is no whole number of bytes.
        words: Its words, in the coding used or, without one, in its dtype's own.
    """

    name: str
    kind: Kind
    dtype: Dtype
    shape: tuple[int, ...]
    coding: WordCoding | None = None
    widening: Widening = Widening.NONE
    origin: str = ""
    tail: int = 0
    steps: tuple[int, ...] = NO_STEPS
    moved: int = 0
    tuned_digest: bytes = b""
    base_digest: bytes = b""
    nbytes: int = field(init=False)
    words: int = field(init=False)

    def __post_init__(self) -> None:
        bits = math.prod(self.shape) * self.dtype.bits
        self.nbytes = -1 if bits % 8 else bits // 8
        coding = self.coding or self.dtype.coding
        # A widened tensor takes twice the bytes of the words that are coded.
        self.words = coding.num_words(self.nbytes // 2 if self.widening else self.nbytes)

    @property
    def coded_dtype(self) -> Dtype:
        """The dtype whose words its chunks code: the source's, if it is widened."""
        return DTYPES[self.widening.source_code] if self.widening else self.dtype

    @property
    def shared(self) -> int:
        """Words that it shares with its source."""
        return self.words - self.tail

    @property
    def changed(self) -> int:
        """Words that differ from its source's."""
        return sum(self.steps) + self.moved

    @property
    def row_words(self) -> int | None:
        """Words of a row, or ``None`` where rows mean nothing."""
        return row_words(self.shape, self.words)


class ChunkRecord(NamedTuple):
    """One chunk.

    Attributes:
        tensor: Place of its tensor in the index.
        first: Its first word.
        length: Its words.
        coding: How it is coded.
        shard: Place of its shard, from 0.
        offset: Position in the shard's data.
        stored: Bytes stored.
        check: Check of the stored bytes.
        result: Check of the result words.
        base: Check of the base words; 0 for a whole chunk.
        bounds: Upper key of each context.
        changed: Changed words of each context.
    """

    tensor: int
    first: int
    length: int
    coding: ChunkCoding
    shard: int
    offset: int
    stored: int
    check: int
    result: int
    base: int = 0
    bounds: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()

    def stored_at(self, shard: int, offset: int) -> ChunkRecord:
        """Return the record with its place. Faster than ``_replace``."""
        return ChunkRecord._make((*self[:4], shard, offset, *self[6:]))

    def checked(self, tensor: int, result: int, base: int) -> ChunkRecord:
        """Return the record with its tensor and its checks. Faster than ``_replace``."""
        return ChunkRecord._make((tensor, *self[1:8], result, base, *self[10:]))


class FileRecord(NamedTuple):
    """One file of the tuned checkpoint: name, number of its layout, and the layout's text."""

    name: str
    layout: int
    text: bytes


class FilesRecord(NamedTuple):
    """How the tuned checkpoint was laid out in files (section 12).

    Attributes:
        files: Its files, by name.
        file_of: Place of each tensor's file.
        index_layout: Number of the layout of the index file.
        index_text: The text that goes with it.
    """

    files: list[FileRecord]
    file_of: list[int]
    index_layout: int
    index_text: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """Every tensor and chunk of a delta.

    Attributes:
        tensors: By name, ascending.
        removed: Base tensors that the tuned checkpoint does not have.
        chunks: By tensor, then first word.
        files: The tuned checkpoint's files.
        features: The block of each feature, by name.
        blocks: Optional blocks by name, which never change the result.
    """

    tensors: list[TensorRecord]
    removed: list[str]
    chunks: list[ChunkRecord]
    files: FilesRecord
    features: dict[str, bytes] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)

    def chunks_of_tensors(self) -> dict[str, list[ChunkRecord]]:
        """The chunks of each tensor that has any, in order."""
        found: defaultdict[str, list[ChunkRecord]] = defaultdict(list)
        for chunk in self.chunks:
            found[self.tensors[chunk.tensor].name].append(chunk)
        return found

    def totals(self) -> Totals:
        """Sums over all tensors."""
        return Totals(
            tensors=len(self.tensors),
            elements=sum(t.words for t in self.tensors),
            changed=sum(t.changed for t in self.tensors if t.kind is Kind.DELTA),
            chunks=len(self.chunks),
            tuned_bytes=sum(t.nbytes for t in self.tensors),
        )

    def tuned_identities(self) -> list[TensorIdentity]:
        """What tells the content of each tuned tensor; an alias has that of its target."""
        digests = {t.name: t.tuned_digest for t in self.tensors}
        return [
            TensorIdentity(
                t.name,
                t.dtype,
                t.shape,
                digests[t.origin] if t.kind is Kind.ALIAS else t.tuned_digest,
            )
            for t in self.tensors
        ]

    def tuned_state(self) -> str:
        """The state digest of the tuned checkpoint, as the index has it."""
        return state_digest(self.tuned_identities())
