"""The index of a delta: every tensor and every chunk (``specs/format.md`` section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.codec import Widening
from rlsparse_store.container.columns import ColumnReader, ColumnWriter
from rlsparse_store.container.manifest import Totals
from rlsparse_store.digest import TensorIdentity, state_digest
from rlsparse_store.dtypes import DTYPES, Dtype, OrderMap, WordCoding, by_number
from rlsparse_store.errors import IndexFormatError, LimitError
from rlsparse_store.limits import (
    MAX_CHUNK_WORDS,
    MAX_CHUNKS,
    MAX_CONTEXTS,
    MAX_DIMENSION,
    MAX_FILES,
    MAX_RANK,
    MAX_TENSORS,
)
from rlsparse_store.storage.names import are_tensor_names, is_file_name, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ChunkCoding",
    "ChunkRecord",
    "FileRecord",
    "FilesRecord",
    "Index",
    "Kind",
    "TensorRecord",
    "decode_index",
    "encode_index",
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
    """Words of a row of a tensor of so many words, or ``None`` where rows mean nothing."""
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
        nbytes = self.dtype.nbytes(self.shape)
        self.nbytes = -1 if nbytes is None else nbytes
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


class FileRecord(NamedTuple):
    """One file of the tuned checkpoint: name, number of its layout, and the layout's text."""

    name: str
    layout: int
    text: bytes


class FilesRecord(NamedTuple):
    """How the tuned checkpoint was laid out in files (section 10).

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
    """

    tensors: list[TensorRecord]
    removed: list[str]
    chunks: list[ChunkRecord]
    files: FilesRecord

    def totals(self) -> Totals:
        """Sums over all tensors."""
        return Totals(
            tensors=len(self.tensors),
            elements=sum(t.words for t in self.tensors),
            changed=sum(t.changed for t in self.tensors if t.kind is Kind.DELTA),
            chunks=len(self.chunks),
            tuned_bytes=sum(t.nbytes for t in self.tensors),
        )

    def tuned_state(self) -> str:
        """The state digest of the tuned checkpoint, as the index has it."""
        digests = {t.name: t.tuned_digest for t in self.tensors}
        return state_digest(
            TensorIdentity(
                t.name,
                t.dtype,
                t.shape,
                digests[t.origin] if t.kind is Kind.ALIAS else t.tuned_digest,
            )
            for t in self.tensors
        )


def encode_index(index: Index) -> bytes:
    """Write an index as the content of its entry, not yet compressed."""
    foreign = sorted(
        {
            t.origin
            for t in index.tensors
            if t.kind in (Kind.SAME, Kind.DELTA) and t.origin != t.name
        },
        key=str.encode,
    )
    out = ColumnWriter()
    files = index.files
    out.integers(
        [
            len(index.tensors),
            len(foreign),
            len(index.removed),
            len(index.chunks),
            len(files.files),
        ]
    )
    out.names([t.name for t in index.tensors])
    out.names(foreign)
    out.names(index.removed)
    _write_tensors(out, index.tensors, foreign)
    _write_chunks(out, index.chunks)
    out.names([file.name for file in files.files])
    out.integers(files.file_of)
    out.integers([file.layout for file in files.files])
    for file in files.files:
        out.text(file.text)
    out.integers([files.index_layout])
    out.text(files.index_text)
    return out.content()


def _write_tensors(out: ColumnWriter, tensors: list[TensorRecord], foreign: list[str]) -> None:
    place = {name: number for number, name in enumerate(foreign, 1)}
    target = {t.name: number for number, t in enumerate(tensors, 1)}

    def origin(t: TensorRecord) -> int:
        if t.kind is Kind.ALIAS:
            return target[t.origin]
        return place[t.origin] if t.origin and t.origin != t.name else 0

    out.integers([t.kind for t in tensors])
    out.integers([t.dtype.number for t in tensors])
    out.integers([len(t.shape) for t in tensors])
    out.integers([dim for t in tensors for dim in t.shape])
    out.integers([t.coding.width if t.coding else 0 for t in tensors])
    out.integers([t.coding.order if t.coding else 0 for t in tensors])
    out.integers([t.widening for t in tensors])
    out.integers([origin(t) for t in tensors])
    out.integers([t.tail for t in tensors])
    out.integers([count for t in tensors for count in t.steps])
    out.integers([t.moved for t in tensors])
    out.digests([t.tuned_digest for t in tensors if t.kind is not Kind.ALIAS])
    out.digests([t.base_digest for t in tensors if t.kind is Kind.DELTA])


def _write_chunks(out: ColumnWriter, chunks: list[ChunkRecord]) -> None:
    tensors, skips = [], []
    tensor, end = 0, 0
    for c in chunks:
        if c.tensor != tensor:
            end = 0
        tensors.append(c.tensor - tensor)
        skips.append(c.first - end)
        tensor, end = c.tensor, c.first + c.length
    deltas = [c for c in chunks if c.coding is not ChunkCoding.WHOLE]
    out.integers(tensors)
    out.integers(skips)
    out.integers([c.length for c in chunks])
    out.integers([c.coding for c in chunks])
    out.integers([c.shard for c in chunks])
    out.integers([c.stored for c in chunks])
    out.integers([c.check for c in chunks])
    out.integers([c.result for c in chunks])
    out.integers([c.base for c in deltas])
    out.integers([len(c.bounds) for c in deltas])
    out.integers([bound for c in deltas for bound in c.bounds])
    out.integers([count for c in deltas for count in c.changed])


# Looked up rather than called: calling an enum is slow, and there may be a million tensors.
_KINDS: Final = tuple(Kind)
_WIDENINGS: Final = tuple(Widening)
_CODINGS: Final = tuple(ChunkCoding)
_SOURCED: Final = (Kind.SAME, Kind.DELTA)
_ORDERS: Final = tuple(OrderMap)


@cache
def _word_coding(width: int, order: int) -> WordCoding:
    return WordCoding(width, _ORDERS[order])


def _require(condition: bool, message: str, tensor: str | None = None) -> None:  # noqa: FBT001
    if not condition:
        raise IndexFormatError(message, tensor=None if tensor is None else shown(tensor))


def _check_names(names: list[str], what: str, accept: Callable[[list[str]], bool]) -> None:
    _require(accept(names), f"an unacceptable {what}")
    # Text compares by code points, which is the order of its UTF-8 bytes.
    _require(all(a < b for a, b in pairwise(names)), f"the {what}s are not in ascending order")


def _are_file_names(names: list[str]) -> bool:
    return all(is_file_name(name) and name.endswith(".safetensors") for name in names)


def decode_index(content: bytes) -> Index:
    """Read an index and check everything that does not need data.

    Raises:
        IndexFormatError: It breaks the format.
        LimitError: It exceeds a limit of the format.
    """
    columns = ColumnReader(content)
    counts = [int(count) for count in columns.integers(5)]
    limits = (MAX_TENSORS, MAX_TENSORS, MAX_TENSORS, MAX_CHUNKS, MAX_FILES)
    for count, limit in zip(counts, limits, strict=True):
        if count > limit:
            msg = f"the index counts {count} of something; at most {limit} are accepted"
            raise LimitError(msg)
    num_tensors, num_foreign, num_removed, num_chunks, num_files = counts
    names = columns.names(num_tensors)
    _check_names(names, "tensor name", are_tensor_names)
    foreign = columns.names(num_foreign)
    _check_names(foreign, "source name", are_tensor_names)
    removed = columns.names(num_removed)
    _check_names(removed, "removed name", are_tensor_names)
    tensors = _read_tensors(columns, names, foreign)
    chunks = _read_chunks(columns, num_chunks, tensors)
    files = _read_files(columns, num_files, num_tensors)
    columns.finish()
    known = set(foreign) | {t.origin for t in tensors if t.kind in (Kind.SAME, Kind.DELTA)}
    _require(known.isdisjoint(removed), "a removed tensor is a source")
    _require(set(names).isdisjoint(removed), "a removed tensor is a tensor")
    _check_chunks(tensors, chunks)
    return Index(tensors, removed, chunks, files)


def _read_tensors(
    columns: ColumnReader, names: list[str], foreign: list[str]
) -> list[TensorRecord]:
    count = len(names)

    def small(most: int, what: str) -> list[int]:
        values = columns.integers(count)
        _require(not count or int(values.max()) <= most, f"an unknown {what}")
        plain: list[int] = values.tolist()
        return plain

    kinds = [_KINDS[kind] for kind in small(max(Kind), "kind")]
    dtypes = [by_number(number) for number in small(len(DTYPES) - 1, "dtype")]
    ranks = columns.limited(count, MAX_RANK, "a rank")
    dims = columns.limited(sum(ranks), MAX_DIMENSION, "a dimension")
    ends = list(accumulate(ranks))
    shapes = [tuple(dims[end - rank : end]) for rank, end in zip(ranks, ends, strict=True)]
    widths = small(64, "word width")
    orders = small(max(OrderMap), "order map")
    widenings = [_WIDENINGS[widening] for widening in small(max(Widening), "widening")]
    origins = small(max(count, len(foreign)), "origin")
    tails = columns.limited(count, MAX_DIMENSION, "a tail")
    counts = columns.limited(count * STEP_BINS, MAX_DIMENSION, "a count of steps")
    steps = list(zip(*(counts[i::STEP_BINS] for i in range(STEP_BINS)), strict=True))
    moved = columns.limited(count, MAX_DIMENSION, "a count of changed words")
    tuned = iter(columns.digests(sum(kind is not Kind.ALIAS for kind in kinds)))
    base = iter(columns.digests(sum(kind is Kind.DELTA for kind in kinds)))
    used: set[int] = set()
    tensors = []
    for i, (name, kind, dtype) in enumerate(zip(names, kinds, dtypes, strict=True)):
        origin = name
        if origins[i] or kind not in _SOURCED:
            origin = _origin(kind, origins[i], name, names, foreign)
            if kind in _SOURCED:
                used.add(origins[i])
        assert dtype is not None  # noqa: S101 - its number was checked above
        tensors.append(
            TensorRecord(
                name,
                kind,
                dtype,
                shapes[i],
                _word_coding(widths[i], orders[i]) if widths[i] else None,
                widenings[i],
                origin,
                tails[i],
                steps[i],
                moved[i],
                b"" if kind is Kind.ALIAS else next(tuned),
                next(base) if kind is Kind.DELTA else b"",
            )
        )
        _require(bool(widths[i]) or not orders[i], "an order map without words", name)
        _check_tensor(tensors[-1])
    _require(set(range(1, len(foreign) + 1)) <= used, "a listed source is not used")
    _check_aliases(tensors)
    return tensors


def _origin(kind: Kind, origin: int, name: str, names: list[str], foreign: list[str]) -> str:
    """The name that an entry of the column ``origin`` stands for."""
    if kind is Kind.ALIAS:
        _require(1 <= origin <= len(names), "an alias of nothing", name)
        return names[origin - 1]
    if kind is Kind.WHOLE:
        _require(origin == 0, "a whole tensor has a source", name)
        return ""
    _require(origin <= len(foreign), "its source is not listed", name)
    if origin == 0:
        return name
    _require(foreign[origin - 1] != name, "its own name is listed as a foreign source", name)
    return foreign[origin - 1]


def _check_tensor(t: TensorRecord) -> None:
    if not 0 <= t.words <= MAX_DIMENSION or t.nbytes < 0:
        _require(t.nbytes >= 0, "its size is no whole number of bytes", t.name)
        msg = f"{t.words} words; at most {MAX_DIMENSION} are accepted"
        raise LimitError(msg, tensor=shown(t.name))
    if t.kind in (Kind.SAME, Kind.ALIAS):
        if t.coding or t.widening or t.tail or t.moved or t.steps != NO_STEPS:
            msg = "a tensor without chunks has words"
            raise IndexFormatError(msg, tensor=shown(t.name))
        return
    _require(t.coding is not None, "a tensor with chunks has no word width", t.name)
    coding = t.coding or t.dtype.coding
    _require(coding.width in (4, 8, 16, 32, 64), f"a word width of {coding.width}", t.name)
    if t.kind is Kind.WHOLE:
        _require(not (t.widening or t.tail or t.changed), "a whole tensor shares words", t.name)
    if t.widening:
        expected = DTYPES[t.widening.source_code].coding
        _require(t.dtype.code == "F32" and coding == expected, "an impossible widening", t.name)
    else:
        _require(t.nbytes * 8 % coding.width == 0, "no whole number of words", t.name)
    _require(t.tail <= t.words, "its tail is longer than it is", t.name)


def _check_aliases(tensors: list[TensorRecord]) -> None:
    by_name = {t.name: t for t in tensors}
    for t in tensors:
        if t.kind is Kind.ALIAS:
            target = by_name[t.origin]
            _require(target.kind is not Kind.ALIAS, "an alias of an alias", t.name)
            _require(
                (target.dtype, target.shape) == (t.dtype, t.shape),
                "an alias of a tensor of another dtype or shape",
                t.name,
            )


def _read_chunks(
    columns: ColumnReader, count: int, tensors: list[TensorRecord]
) -> list[ChunkRecord]:
    steps = columns.limited(count, MAX_TENSORS, "a step between tensors")
    skips = columns.limited(count, MAX_DIMENSION, "a gap between chunks")
    lengths = columns.limited(count, MAX_CHUNK_WORDS, "a chunk length")
    numbers = columns.integers(count)
    _require(not count or int(numbers.max()) <= max(ChunkCoding), "an unknown chunk coding")
    codings = [_CODINGS[number] for number in numbers.tolist()]
    shards = columns.limited(count, MAX_FILES - 1, "a shard number")
    stored = columns.limited(count, 1 << 40, "a stored length")
    # Before a record is made of each: columns of zeros take no room, so there could be millions.
    _require(not count or (min(lengths) >= 1 and min(stored) >= 1), "an empty chunk")
    checks = columns.limited(count, 0xFFFFFFFF, "a check")
    results = columns.limited(count, 0xFFFFFFFF, "a check")
    deltas = sum(coding is not ChunkCoding.WHOLE for coding in codings)
    bases = iter(columns.limited(deltas, 0xFFFFFFFF, "a check"))
    contexts = columns.limited(deltas, MAX_CONTEXTS, "contexts of a chunk")
    bounds = [int(bound) for bound in columns.integers(sum(contexts)).tolist()]
    changed = columns.limited(sum(contexts), MAX_CHUNK_WORDS, "changed words of a context")
    cuts = iter(pairwise([0, *accumulate(contexts)]))
    chunks = []
    tensor, end = 0, 0
    offsets: dict[int, int] = {}
    for i, coding in enumerate(codings):
        end = 0 if steps[i] else end
        tensor += steps[i]
        _require(tensor < len(tensors), "a chunk of no tensor")
        first = end + skips[i]
        end = first + lengths[i]
        base = 0
        cut = slice(0)
        if coding is not ChunkCoding.WHOLE:
            base = next(bases)
            cut = slice(*next(cuts))
        offset = offsets.get(shards[i], 0)
        offsets[shards[i]] = offset + stored[i]
        chunks.append(
            ChunkRecord(
                tensor,
                first,
                lengths[i],
                coding,
                shards[i],
                offset,
                stored[i],
                checks[i],
                results[i],
                base,
                tuple(bounds[cut]),
                tuple(changed[cut]),
            )
        )
    return chunks


def _read_files(columns: ColumnReader, count: int, tensors: int) -> FilesRecord:
    names = columns.names(count)
    _check_names(names, "file name", _are_file_names)
    file_of = [int(place) for place in columns.integers(tensors).tolist()]
    _require(all(place < count for place in file_of), "a tensor in no file")
    layouts = [int(layout) for layout in columns.integers(count).tolist()]
    _require(all(layout <= 2 for layout in layouts), "an unknown file layout")
    texts = [columns.text() for _ in names]
    index_layout = int(columns.integers(1)[0])
    _require(index_layout <= 2, "an unknown layout of the index file")
    index_text = columns.text()
    _require(bool(index_layout) or not index_text, "a text of no index file")
    files = [FileRecord(*file) for file in zip(names, layouts, texts, strict=True)]
    return FilesRecord(files, file_of, index_layout, index_text)


def _check_chunks(tensors: list[TensorRecord], chunks: list[ChunkRecord]) -> None:
    """Check each chunk against its tensor, and that whole parts are covered."""
    whole: dict[int, list[ChunkRecord]] = {}
    changed = [0] * len(tensors)
    for c in chunks:
        t = tensors[c.tensor]
        _require(t.coding is not None, "a chunk of a tensor without chunks", t.name)
        limit = t.words if c.coding is ChunkCoding.WHOLE else t.shared
        _require(c.first + c.length <= limit, "a chunk leaves its tensor", t.name)
        if t.coding is not None and t.coding.width == 4:
            _require(c.first % 2 == 0 and c.length % 2 == 0, "a chunk splits a byte", t.name)
        if c.coding is ChunkCoding.WHOLE:
            whole.setdefault(c.tensor, []).append(c)
            continue
        _require(t.kind is Kind.DELTA, "a delta chunk of a whole tensor", t.name)
        _require(bool(c.bounds) and sum(c.changed) >= 1, "a chunk without changes", t.name)
        if len(c.bounds) > 1:
            _require(all(a < b for a, b in pairwise(c.bounds)), "context bounds descend", t.name)
        if c.coding is ChunkCoding.DELTA_WITH_ROWS:
            _require(t.row_words is not None, "row flags in a tensor without rows", t.name)
        changed[c.tensor] += sum(c.changed)
    for number, t in enumerate(tensors):
        if t.kind is Kind.DELTA:
            agree = sum(t.steps) == changed[number]
            _require(agree, "its steps are not as many as its chunks have changes", t.name)
        if t.kind is Kind.WHOLE or t.tail:
            start = 0 if t.kind is Kind.WHOLE else t.shared
            _check_cover(t, start, whole.get(number, ()))


def _check_cover(t: TensorRecord, start: int, chunks: Iterable[ChunkRecord]) -> None:
    covered = start
    for c in chunks:
        if c.first <= covered:
            covered = max(covered, c.first + c.length)
    _require(covered >= t.words, "a part that the source does not share is not stored", t.name)
