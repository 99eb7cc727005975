"""Encoding of many small tensors in a few calls.

A small tensor (:mod:`rlsparse_store.pipeline.small_tensors`) is one span with at most one chunk.
Chunks, checks and errors are those of :func:`~rlsparse_store.pipeline.spans.encode_span`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.codec.chunk import (
    DRAFT_RULES,
    compress_draft,
    decoded_leaves,
)
from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.format.index.records import ChunkCoding
from rlsparse_store.format.words import as_words
from rlsparse_store.kernels.interface import SmallTensors
from rlsparse_store.pipeline.small_tensors import SMALL_BYTES, open_streams, read_tensors
from rlsparse_store.pipeline.spans import (
    CodedSpan,
    Span,
    changed_error,
    encode_span_chunk,
    roundtrip_error,
    with_checks,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.codec.chunk import EncodedChunk
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.kernels.interface import ChunkStreams, CpuBackend, Draft
    from rlsparse_store.pipeline.scratch import Scratch

__all__ = ["encode_small_spans", "small_coding"]


def small_coding(span: Span) -> tuple[WordCoding, int | None] | None:
    """Return word coding and mantissa bits of a small tensor; ``None`` for any other span.

    4-bit words share bytes, and are encoded one tensor at a time.
    """
    is_small = span.start == 0 and span.is_last and span.stop <= SMALL_BYTES
    if is_small and span.is_plain_block and span.coding.width != 4:
        return span.coding, span.mantissa_bits
    return None


def encode_small_spans(
    backend: CpuBackend,
    spans: Sequence[Span],
    base: Checkpoint,
    tuned: Checkpoint,
    scratch: Scratch,
) -> list[CodedSpan]:
    """Encode small tensors of one coding, as :func:`encode_span` does each of them.

    Args:
        backend: Runs the loops.
        spans: The tensors, for all of which :func:`small_coding` returns the same.
        base: The base.
        tuned: The tuned checkpoint.
        scratch: Buffers of this thread.

    Raises:
        ResultMismatchError: A chunk does not decode to its words, or the base changed.
    """
    # In the order of the file, most are neighbours.
    places = [(span.plan.tuned.file, span.plan.tuned.offset, i) for i, span in enumerate(spans)]
    order = [i for _, _, i in sorted(places)]
    batch = _Batch(backend, [spans[i] for i in order], base, tuned, scratch)
    chunks = batch.encode()
    batch.prove(chunks)
    coded = dict(zip(order, batch.coded(chunks), strict=True))
    return [coded[i] for i in range(len(spans))]


def _rows_of_each(spans: Sequence[Span]) -> list[int]:
    """Return the words per row of each tensor, 0 without rows. Many have the same shape."""
    known: dict[tuple[int, ...], int] = {}
    for span in spans:
        shape = span.plan.tuned.shape
        if shape not in known:
            known[shape] = span.row_words or 0
    return [known[span.plan.tuned.shape] for span in spans]


class _Batch:
    """Small tensors of one coding, in memory."""

    def __init__(
        self,
        backend: CpuBackend,
        spans: Sequence[Span],
        base: Checkpoint,
        tuned: Checkpoint,
        scratch: Scratch,
    ) -> None:
        self._backend = backend
        self._spans = spans
        self._coding = spans[0].coding
        self._changed = scratch.changes
        self._stops = list(accumulate(span.stop for span in spans))
        ends = np.array(self._stops, np.uint64)
        self._word_ends = ends // np.uint64(self._coding.width // 8)
        self._old = scratch.base.take(self._stops[-1])
        self._new = scratch.tuned.take(self._stops[-1])
        read_tensors(base, [s.plan.source for s in spans if s.plan.source is not None], self._old)
        self._base_leaves = backend.hash_each(self._old, ends)
        for i, span in enumerate(spans):
            if span.base_leaves is not None:
                self._base_leaves[i] = span.base_leaves[0]
        read_tensors(tuned, [span.plan.tuned for span in spans], self._new)
        self._tuned_leaves = backend.hash_each(self._new, ends)
        self._ends = ends

    def encode(self) -> list[EncodedChunk | None]:
        """Encode the chunk of each tensor that changed."""
        spans, coding = self._spans, self._coding
        rows = np.array(_rows_of_each(spans), np.uint64)
        old, new = as_words(self._old, coding.width), as_words(self._new, coding.width)
        found = self._backend.draft_each(
            SmallTensors(old, new, self._word_ends, rows),
            coding,
            key_bins(coding, spans[0].mantissa_bits),
            DRAFT_RULES,
        )
        return [
            self._chunk(i, draft) if changes else None
            for i, (changes, draft) in enumerate(zip(*found, strict=True))
        ]

    def _bytes(self, i: int) -> slice:
        """Place of a tensor among the bytes of all."""
        return slice(self._stops[i] - self._spans[i].stop, self._stops[i])

    def _chunk(self, i: int, draft: Draft | None) -> EncodedChunk:
        """Encode the chunk of a tensor."""
        span, coding, place = self._spans[i], self._coding, self._bytes(i)
        old, new = self._old[place], as_words(self._new[place], coding.width)
        if draft is not None:
            return compress_draft(self._backend, draft, coding, 0, new.size, lambda: new)
        self._changed.clear()
        self._backend.compare(as_words(old, coding.width), new, coding, self._changed)
        chunk = span.chunk_words(0, old, self._changed)
        return encode_span_chunk(self._backend, span, chunk)

    def prove(self, chunks: list[EncodedChunk | None]) -> None:
        """Require that all base words are those that were hashed, and that all chunks decode.

        Raises:
            ResultMismatchError: One does not.
        """
        backend, words = self._backend, as_words(self._old, self._coding.width)
        decoded = self._tuned_leaves.copy()
        streams: list[ChunkStreams | None] = [None] * len(chunks)
        for i, chunk in enumerate(chunks):
            if chunk is None:
                continue
            record, stored = chunk.record, chunk.stored
            if record.coding is ChunkCoding.DELTA:
                streams[i] = open_streams(record, stored, self._coding)
            else:
                old = as_words(self._old[self._bytes(i)], self._coding.width)
                decoded[i : i + 1] = decoded_leaves(
                    backend, record, stored, self._coding, self._spans[i].row_words, old
                )
        backend.apply_each(words, self._word_ends, self._coding, streams, None, decoded)
        # With a base that changed in memory, a chunk decodes to the tuned words here alone.
        kept = backend.hash_each(self._old, self._ends) == self._base_leaves
        # A tensor without changes has the hash of its source.
        same = np.array([chunk is None for chunk in chunks])
        kept &= ~same | (self._tuned_leaves == self._base_leaves)
        right = decoded == self._tuned_leaves
        if not (kept & right).all():
            first = int((kept & right).argmin())
            error = roundtrip_error if kept[first] else changed_error
            raise error(self._spans[first].plan)

    def coded(self, chunks: list[EncodedChunk | None]) -> list[CodedSpan]:
        """Return the tensors with their chunks and leaf hashes."""
        coded = []
        for i, (span, chunk) in enumerate(zip(self._spans, chunks, strict=True)):
            base = self._base_leaves[i : i + 1]
            if chunk is None:
                coded.append(CodedSpan(span, [], base, base))
                continue
            tuned = self._tuned_leaves[i : i + 1]
            is_whole = chunk.record.coding is ChunkCoding.WHOLE
            checked = with_checks(chunk, span, None if is_whole else base, tuned)
            coded.append(CodedSpan(span, [checked], tuned, base))
        return coded
