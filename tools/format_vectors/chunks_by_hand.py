"""Chunks whose streams are edited before they are joined."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from format_vectors.draft import Draft, compressed
from rlsparse_store.codec.chunk import encode_whole
from rlsparse_store.format.bits import pack_flags
from rlsparse_store.format.digests import bytes_check, leaf_hashes, leaves_check
from rlsparse_store.format.index.records import ChunkCoding, ChunkRecord, TensorRecord
from rlsparse_store.format.words import Words, as_words, to_bytes
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from format_vectors.pairs import Pair
    from rlsparse_store.kernels.interface import Streams

SIGNS, CLASSES, EXPONENTS, LOW_BITS = range(-4, 0)
"""The streams behind the masks, as :attr:`Streams.parts` lists them."""


def words_of(pair: Pair, t: TensorRecord, first: int, length: int) -> tuple[Words, Words]:
    """Base and tuned words of part of a tensor."""
    before = _words(pair.base[t.origin or t.name].data, t, first, length)
    return before, _words(pair.tensor(t.name).data, t, first, length)


def _words(data: bytes, t: TensorRecord, first: int, length: int) -> Words:
    coding = t.coding or t.dtype.coding
    return as_words(np.frombuffer(data, np.uint8), coding.width)[first : first + length]


def words_check(words: Words, width: int = 8) -> int:
    """The check of words of a width."""
    data = to_bytes(words, 4) if width == 4 else words
    return leaves_check(leaf_hashes(np.ascontiguousarray(data).view(np.uint8)))


def streams_of(pair: Pair, draft: Draft, number: int) -> tuple[bytes, Streams]:
    """The row flags and the streams of a chunk, apart."""
    c = draft.index.chunks[number]
    t = draft.index.tensors[c.tensor]
    before, after = words_of(pair, t, c.first, c.length)
    backend, rows = get_backend(), None
    coding = t.coding or t.dtype.coding
    changed = backend.changed_words(before, after, coding)
    if c.coding is ChunkCoding.DELTA_WITH_ROWS:
        row = t.row_words or 1
        rows = backend.active_rows(changed, before.size, row, c.first % row)
    bounds = np.array(c.bounds, np.uint64)
    streams = backend.partition(before, changed, coding, bounds, rows)
    return b"" if rows is None else pack_flags(rows.active), streams


def joined(streams: Streams, flags: bytes = b"") -> bytes:
    """The content of a chunk with these streams."""
    return flags + bytes(streams.content)


def with_part(streams: Streams, number: int, part: bytes) -> Streams:
    """Streams one of which is another."""
    parts = streams.parts
    parts[number] = part
    return replace(streams, content=b"".join(parts), sizes=[len(part) for part in parts])


def recoded(
    pair: Pair, draft: Draft, tensor: int, first: int, length: int, *, rows: bool = False
) -> tuple[ChunkRecord, bytes]:
    """Part of a tensor as a delta chunk of one context, with row flags if asked to."""
    t = draft.index.tensors[tensor]
    before, after = words_of(pair, t, first, length)
    coding = t.coding or t.dtype.coding
    top = (1 << coding.key_bits) - 1
    bounds = np.array([top], np.uint64)
    backend, row = get_backend(), t.row_words or 1
    changed = backend.changed_words(before, after, coding)
    active = backend.active_rows(changed, before.size, row, first % row) if rows else None
    streams = backend.partition(before, changed, coding, bounds, active)
    flags = b"" if active is None else pack_flags(active.active)
    stored = compressed(joined(streams, flags))
    record = ChunkRecord(
        tensor,
        first,
        length,
        ChunkCoding.DELTA_WITH_ROWS if rows else ChunkCoding.DELTA,
        0,
        0,
        len(stored),
        bytes_check(stored),
        words_check(after, coding.width),
        words_check(before, coding.width),
        (top,),
        tuple(streams.changed),
    )
    return record, stored


def with_contexts(
    pair: Pair, draft: Draft, chunk: ChunkRecord, contexts: int
) -> tuple[ChunkRecord, bytes]:
    """A delta chunk in as many contexts, each with as many words as the others."""
    t = draft.index.tensors[chunk.tensor]
    before, after = words_of(pair, t, chunk.first, chunk.length)
    coding = t.coding or t.dtype.coding
    top = (1 << coding.key_bits) - 1
    keys = np.unique(before & top)
    bounds = [*keys[len(keys) // contexts :: len(keys) // contexts].tolist()[: contexts - 1], top]
    backend = get_backend()
    words = backend.changed_words(before, after, coding)
    streams = backend.partition(before, words, coding, np.array(bounds, np.uint64), None)
    stored = compressed(joined(streams))
    changed = tuple(streams.changed)
    return chunk._replace(coding=ChunkCoding.DELTA, bounds=tuple(bounds), changed=changed), stored


def whole_chunk(
    pair: Pair, draft: Draft, tensor: int, first: int, length: int
) -> tuple[ChunkRecord, bytes]:
    """Part of a tensor as a whole chunk."""
    t = draft.index.tensors[tensor]
    after = _words(pair.tensor(t.name).data, t, first, length)
    stored = encode_whole(get_backend(), first, after, t.coding or t.dtype.coding).stored
    check = bytes_check(stored)
    coding = ChunkCoding.WHOLE
    return (
        ChunkRecord(tensor, first, length, coding, 0, 0, len(stored), check, words_check(after)),
        stored,
    )


def step_counts(pair: Pair, name: str, runs: Sequence[tuple[int, int]]) -> list[int]:
    """The column ``steps`` of a BF16 tensor whose delta chunks are these runs."""
    counts = [0] * 8
    for first, length in runs:
        before = pair.base[name].words[first : first + length].astype(np.int64)
        after = pair.tensor(name).words[first : first + length].astype(np.int64)
        for old, new in zip(before.tolist(), after.tolist(), strict=True):
            step = _order(new) - _order(old)
            if step:
                counts[min(abs(step), 4) - 1 + (0 if step < 0 else 4)] += 1
    return counts


def _order(word: int) -> int:
    return word ^ 0x7FFF if word & 0x8000 else word + 0x10000
