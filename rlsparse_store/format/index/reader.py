"""Reading the index of a delta and checking all of it (``specs/format.md`` section 10)."""

from __future__ import annotations

from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import LimitError
from rlsparse_store.format.dtypes import DTYPES, OrderMap, WordCoding
from rlsparse_store.format.index.checks import (
    check_aliases,
    check_chunks,
    check_names,
    check_tensor,
    require,
)
from rlsparse_store.format.index.columns import ColumnReader
from rlsparse_store.format.index.records import (
    STEP_BINS,
    ChunkCoding,
    ChunkRecord,
    FileRecord,
    FilesRecord,
    Index,
    Kind,
    TensorRecord,
)
from rlsparse_store.format.limits import (
    MAX_BLOCKS,
    MAX_CHECK,
    MAX_CHUNK_STORED,
    MAX_CHUNK_WORDS,
    MAX_CHUNKS,
    MAX_CONTEXTS,
    MAX_DIMENSION,
    MAX_FILES,
    MAX_RANK,
    MAX_TENSORS,
    MAX_TUNED_BYTES,
    MIN_CHUNK_STORED,
)
from rlsparse_store.format.names import are_tensor_names, is_block_name, is_file_name
from rlsparse_store.format.words import Widening

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["decode_index"]

# Looked up rather than called: calling an enum is slow, and there may be a million tensors.
_KINDS: Final = tuple(Kind)
_WIDENINGS: Final = tuple(Widening)
_CODINGS: Final = tuple(ChunkCoding)
_SOURCED: Final = (Kind.SAME, Kind.DELTA)
_ORDERS: Final = tuple(OrderMap)
# 0 for a tensor without chunks.
_WIDTHS: Final = frozenset((0, 4, 8, 16, 32, 64))
_DTYPES: Final = tuple(DTYPES.values())


@cache
def _word_coding(width: int, order: int) -> WordCoding:
    return WordCoding(width, _ORDERS[order])


def _are_file_names(names: list[str]) -> bool:
    good = all(is_file_name(name) and name.endswith(".safetensors") for name in names)
    # On some systems, names that differ by case are one file.
    return good and len({name.lower() for name in names}) == len(names)


def decode_index(content: bytes, shard_bytes: Sequence[int], features: Sequence[str] = ()) -> Index:
    """Read an index and check everything that does not need data.

    Args:
        content: The index.
        shard_bytes: Bytes of chunks that each shard holds.
        features: The features that the manifest lists.

    Raises:
        IndexFormatError: It breaks the format, or its chunks do not fill the shards.
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
    # Before anything is made of each: columns of few values take no room in the file, so there
    # could be millions of chunks in a small one.
    fits = num_chunks * MIN_CHUNK_STORED <= sum(shard_bytes)
    require(fits, f"{num_chunks} chunks are more than the data has room for")
    names = columns.names(num_tensors)
    check_names(names, "tensor name", are_tensor_names)
    foreign = columns.names(num_foreign)
    check_names(foreign, "source name", are_tensor_names)
    removed = columns.names(num_removed)
    check_names(removed, "removed name", are_tensor_names)
    tensors = _read_tensors(columns, names, foreign)
    chunks = _read_chunks(columns, num_chunks, tensors, shard_bytes)
    files = _read_files(columns, num_files, num_tensors)
    feature_blocks = {name: columns.text() for name in features}
    blocks = _read_blocks(columns)
    columns.finish()
    if removed:
        # A source is a foreign one or has the name of a tensor.
        require(set(foreign).isdisjoint(removed), "a removed tensor is a source")
        require(set(names).isdisjoint(removed), "a removed tensor is a tensor")
    check_chunks(tensors, chunks)
    return Index(tensors, removed, chunks, files, feature_blocks, blocks)


def _read_tensors(
    columns: ColumnReader, names: list[str], foreign: list[str]
) -> list[TensorRecord]:
    count = len(names)

    def small(most: int, what: str) -> list[int]:
        values = columns.integers(count)
        require(not count or int(values.max()) <= most, f"an unknown {what}")
        plain: list[int] = values.tolist()
        return plain

    kinds = [_KINDS[kind] for kind in small(max(Kind), "kind")]
    dtypes = [_DTYPES[number] for number in small(len(DTYPES) - 1, "dtype")]
    ranks = columns.limited(count, MAX_RANK, "a rank")
    dims = columns.limited(sum(ranks), MAX_DIMENSION, "a dimension")
    ends = list(accumulate(ranks))
    shapes = [tuple(dims[end - rank : end]) for rank, end in zip(ranks, ends, strict=True)]
    widths = columns.numbers(count)
    require(_WIDTHS.issuperset(widths), "an unknown word width")
    orders = small(max(OrderMap), "order map")
    widenings = [_WIDENINGS[widening] for widening in small(max(Widening), "widening")]
    origins = small(max(count, len(foreign)), "origin")
    tails = columns.numbers(count)
    counts = columns.numbers(count * STEP_BINS)
    steps = list(zip(*(counts[i::STEP_BINS] for i in range(STEP_BINS)), strict=True))
    moved = columns.numbers(count)
    tuned = iter(columns.digests(sum(kind is not Kind.ALIAS for kind in kinds)))
    base = iter(columns.digests(sum(kind is Kind.DELTA for kind in kinds)))
    used: set[int] = set()
    tensors = []
    for i, (name, kind, dtype) in enumerate(zip(names, kinds, dtypes, strict=True)):
        origin = _origin(kind, origins[i], name, names, foreign)
        if kind in _SOURCED:
            used.add(origins[i])
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
        require(bool(widths[i]) or not orders[i], "an order map without words", name)
        check_tensor(tensors[-1])
    require(set(range(1, len(foreign) + 1)) <= used, "a listed source is not used")
    check_aliases(tensors)
    nbytes = sum(t.nbytes for t in tensors)
    if nbytes > MAX_TUNED_BYTES:
        msg = f"tensors of {nbytes} bytes; at most {MAX_TUNED_BYTES} are accepted"
        raise LimitError(msg)
    return tensors


def _origin(kind: Kind, origin: int, name: str, names: list[str], foreign: list[str]) -> str:
    """The name that an entry of the column ``origin`` stands for."""
    if kind is Kind.ALIAS:
        require(1 <= origin <= len(names), "an alias of nothing", name)
        return names[origin - 1]
    if kind is Kind.WHOLE:
        require(origin == 0, "a whole tensor has a source", name)
        return ""
    require(origin <= len(foreign), "its source is not listed", name)
    if origin == 0:
        return name
    require(foreign[origin - 1] != name, "its own name is listed as a foreign source", name)
    return foreign[origin - 1]


def _read_chunks(
    columns: ColumnReader, count: int, tensors: list[TensorRecord], shard_bytes: Sequence[int]
) -> list[ChunkRecord]:
    steps = columns.numbers(count)
    skips = columns.numbers(count)
    lengths = columns.limited(count, MAX_CHUNK_WORDS, "a chunk length")
    numbers = columns.integers(count)
    require(not count or int(numbers.max()) <= max(ChunkCoding), "an unknown chunk coding")
    codings = [_CODINGS[number] for number in numbers.tolist()]
    shards = columns.numbers(count)
    stored = columns.limited(count, MAX_CHUNK_STORED, "a stored length")
    require(all(lengths), "a chunk of no words")
    offsets = _offsets(shards, stored, shard_bytes)
    checks = columns.limited(count, MAX_CHECK, "a check")
    results = columns.limited(count, MAX_CHECK, "a check")
    deltas = sum(coding is not ChunkCoding.WHOLE for coding in codings)
    bases = iter(columns.limited(deltas, MAX_CHECK, "a check"))
    contexts = columns.limited(deltas, MAX_CONTEXTS, "contexts of a chunk")
    bounds = columns.numbers(sum(contexts))
    changed = columns.limited(sum(contexts), MAX_CHUNK_WORDS, "changed words of a context")
    cuts = iter(pairwise([0, *accumulate(contexts)]))
    chunks = []
    tensor, end = 0, 0
    for i, coding in enumerate(codings):
        end = 0 if steps[i] else end
        tensor += steps[i]
        require(tensor < len(tensors), "a chunk of no tensor")
        first = end + skips[i]
        end = first + lengths[i]
        base = 0
        cut = slice(0)
        if coding is not ChunkCoding.WHOLE:
            base = next(bases)
            cut = slice(*next(cuts))
        chunks.append(
            ChunkRecord(
                tensor,
                first,
                lengths[i],
                coding,
                shards[i],
                offsets[i],
                stored[i],
                checks[i],
                results[i],
                base,
                tuple(bounds[cut]),
                tuple(changed[cut]),
            )
        )
    return chunks


def _offsets(shards: list[int], stored: list[int], shard_bytes: Sequence[int]) -> list[int]:
    """Where each chunk starts in its shard, which the chunks must fill."""
    require(min(stored, default=MIN_CHUNK_STORED) >= MIN_CHUNK_STORED, "a chunk of too few bytes")
    last = max(shards, default=0)
    require(last < len(shard_bytes), f"a chunk names shard {last + 1} of {len(shard_bytes)}")
    ends = [0] * len(shard_bytes)
    offsets = []
    for shard, nbytes in zip(shards, stored, strict=True):
        offsets.append(ends[shard])
        ends[shard] += nbytes
    for number, (end, held) in enumerate(zip(ends, shard_bytes, strict=True), 1):
        require(end == held, f"the chunks of shard {number} take {end} bytes, but it holds {held}")
    return offsets


def _read_files(columns: ColumnReader, count: int, tensors: int) -> FilesRecord:
    names = columns.names(count)
    check_names(names, "file name", _are_file_names)
    file_of = columns.numbers(tensors)
    require(all(place < count for place in file_of), "a tensor in no file")
    layouts = columns.numbers(count)
    require(all(layout <= 2 for layout in layouts), "an unknown file layout")
    texts = [columns.text() for _ in names]
    index_layout = int(columns.integers(1)[0])
    require(index_layout <= 2, "an unknown layout of the index file")
    index_text = columns.text()
    require(bool(index_layout) or not index_text, "a text of no index file")
    files = [FileRecord(*file) for file in zip(names, layouts, texts, strict=True)]
    return FilesRecord(files, file_of, index_layout, index_text)


def _read_blocks(columns: ColumnReader) -> dict[str, bytes]:
    (count,) = columns.limited(1, MAX_BLOCKS, "optional blocks")
    blocks: dict[str, bytes] = {}
    before = ""
    for _ in range(count):
        # What is no text of ASCII has no name that is accepted.
        name = columns.text().decode("ascii", "replace")
        require(is_block_name(name), "an optional block without a name")
        require(name > before, "optional blocks are not in ascending order")
        blocks[name] = columns.text()
        before = name
    return blocks
