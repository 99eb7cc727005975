"""Encoding the slabs that one of several processes holds into its own shard of a delta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rlsparse_store.delta.chunk_counts import ChunkCounts
from rlsparse_store.format.digests import checksum
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.words import Widening
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.slabs import LeafRun, hash_run, read_stored, slab_plan
from rlsparse_store.pipeline.spans import tensor_spans
from rlsparse_store.pipeline.tensor_matching import TensorPlan, require_exact
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map, resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.files.delta_writer import RankShard
    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.index.records import ChunkRecord
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.pipeline.progress import Progress
    from rlsparse_store.pipeline.spans import CodedSpan, Span

    BaseLeaves = dict[tuple[str, int, int], NDArray[np.uint64]]

__all__ = [
    "HeldSlab",
    "SlabEncoder",
    "SlabRecord",
    "TensorOrder",
    "base_identity",
]

SLAB_SPAN_BYTES: Final = 1 << 25
"""Bytes of a span: a thread needs twice that at most, beside a model that fills the memory."""


class TensorOrder(NamedTuple):
    """How a tensor is to be stored, as one process tells the others.

    Attributes:
        name: Its name.
        dtype: The code of its dtype in memory.
        shape: Its dimensions, in elements.
        stored: The code of its dtype in the delta.
        source: The name of its source; empty if it has none.
        widening: Number of the widening.
        shared_bytes: Leading bytes of the source that it shares.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: str
    source: str
    widening: int
    shared_bytes: int

    @classmethod
    def of(cls, plan: TensorPlan) -> TensorOrder:
        """Return the order that says what a plan does."""
        tuned, source = plan.tuned, plan.source
        return cls(
            tuned.name,
            tuned.dtype.code,
            tuned.shape,
            plan.dtype.code,
            "" if source is None else source.name,
            int(plan.widening),
            plan.shared_bytes,
        )

    def plan(self, tuned: TensorRef, base: Checkpoint) -> TensorPlan:
        """Return the plan of a tensor."""
        source = base.tensors[self.source] if self.source else None
        widening = Widening(self.widening)
        return TensorPlan(tuned, DTYPES[self.stored], source, widening, self.shared_bytes)


class HeldSlab(NamedTuple):
    """A slab in memory.

    Attributes:
        order: How its tensor is to be stored.
        start: Its first byte in the tensor, before a cast.
        held: The slab, in a checkpoint of this process's slabs.
    """

    order: TensorOrder
    start: int
    held: TensorRef


class SlabRecord(NamedTuple):
    """What the process that writes the index has to know of a slab.

    Attributes:
        name: Its tensor.
        chunks: Records of its chunks, with tensor number 0.
        counts: What the chunks add up to.
        tuned: Its bytes in the tensor as stored, with edges.
        base: Its bytes in the source, without edges; ``None`` if it has no source, or if the
            digest of the source is known.
    """

    name: str
    chunks: list[ChunkRecord]
    counts: ChunkCounts
    tuned: LeafRun
    base: LeafRun | None


def base_identity(base: Checkpoint) -> int:
    """Return a number that tells bases of other tensors or files apart, but reads no weights."""
    return checksum(*(file.header for file in base.files))


class SlabEncoder:
    """Encodes slabs of one tuned checkpoint.

    Args:
        base: The base.
        tuned: The slabs, as a checkpoint.
        slabs: The slabs. They are encoded in the order of names and places.
        known_leaves: Leaf hashes of base slabs by source name, first byte and length, to which
            this encoding adds its own.
        known_sources: Names of base tensors whose digest is known.
    """

    def __init__(
        self,
        base: Checkpoint,
        tuned: Checkpoint,
        slabs: Sequence[HeldSlab],
        known_leaves: BaseLeaves,
        known_sources: frozenset[str],
    ) -> None:
        self._base = base
        self._tuned = tuned
        self._slabs = sorted(slabs, key=lambda slab: (slab.order.name.encode(), slab.start))
        self._plans = [slab.order.plan(slab.held, base) for slab in self._slabs]
        self._parts = [
            slab_plan(plan, slab.held, slab.start)
            for plan, slab in zip(self._plans, self._slabs, strict=True)
        ]
        self._known_leaves = known_leaves
        self._known_sources = known_sources
        self._coded: list[CodedSpan] = []
        self._hash_leaves = get_backend().leaf_hashes

    def encode(
        self, shard: RankShard, coder: SpanCoder, threads: int | None, progress: Progress
    ) -> list[SlabRecord]:
        """Encode all slabs.

        Args:
            shard: Takes the chunks.
            coder: Encodes the spans.
            threads: Threads to work on; all processors by default.
            progress: Called with bytes done and bytes in all, of this process.

        Returns:
            The records of the slabs, in the order of names and places.

        Raises:
            DtypeMismatchError: A tensor is not exactly the widening that was planned.
            RlsparseError: The base cannot be read, or the shard cannot be written.
        """
        base, tuned = self._base, self._tuned

        def code(batch: Batch[Span]) -> list[CodedSpan]:
            return coder.code(batch.items, base, tuned)

        spans = ((span, coder.weigh(span, base, tuned)) for span in self._spans())
        total = sum(slab.held.nbytes for slab in self._slabs)
        done, records = 0, []
        batches = batched(spans, coder.batch_bytes)
        for coded in ordered_map(code, batches, resolve_threads(threads)):
            for span in coded:
                self._coded.append(span)
                if span.span.is_last:
                    records.append(self._record(span.span.tensor, shard))
                    done += self._slabs[span.span.tensor].held.nbytes
            progress(done, total)
        base.check_unchanged()
        return records

    def _coding(self, number: int) -> WordCoding:
        """The coding of a slab's words, which is that of its tensor."""
        return self._plans[number].coded_dtype.coding

    def _base_key(self, number: int) -> tuple[str, int, int]:
        source = self._parts[number].source
        return ("", 0, 0) if source is None else (source.name, source.offset, source.nbytes)

    def _spans(self) -> Iterator[Span]:
        for number, (slab, part) in enumerate(zip(self._slabs, self._parts, strict=True)):
            require_exact(self._tuned, slab.held, self._plans[number])
            known = self._known_leaves.get(self._base_key(number))
            yield from tensor_spans(number, part, self._coding(number), known, SLAB_SPAN_BYTES)

    def _record(self, number: int, shard: RankShard) -> SlabRecord:
        """Store the chunks of a slab whose spans are all encoded, and return its record."""
        plan, part, coding = self._plans[number], self._parts[number], self._coding(number)
        start = self._slabs[number].start
        scale = 2 if plan.is_cast or plan.widening else 1
        counts = ChunkCounts()
        chunks = []
        for chunk in (chunk for coded in self._coded for chunk in coded.chunks):
            record = chunk.record
            place = shard.add(chunk.stored, record.check)
            first = coding.num_words(start // scale) + record.first
            chunks.append(
                record._replace(tensor=0, first=first, shard=place.shard, offset=place.offset)
            )
            counts.add(chunk, coding)
        tuned_leaves = np.concatenate([coded.tuned_leaves for coded in self._coded])
        base_leaves = np.concatenate([coded.base_leaves for coded in self._coded])
        self._coded = []
        tuned = self._tuned_run(part, start // 2 if plan.is_cast else start, tuned_leaves)
        base = self._base_run(number, start // scale, base_leaves)
        return SlabRecord(self._slabs[number].order.name, chunks, counts, tuned, base)

    def _tuned_run(self, part: TensorPlan, start: int, leaves: NDArray[np.uint64]) -> LeafRun:
        def read(place: int, nbytes: int) -> NDArray[np.uint8]:
            return read_stored(self._tuned, part, place - start, nbytes)

        run = hash_run(start, part.stored_nbytes, read, self._hash_leaves, leaves)
        return run.with_edges(read)

    def _base_run(self, number: int, start: int, leaves: NDArray[np.uint64]) -> LeafRun | None:
        plan, part = self._plans[number], self._parts[number]
        if part.source is None or plan.source is None:
            return None
        self._known_leaves[self._base_key(number)] = leaves
        if plan.source.name in self._known_sources:
            return None
        source = plan.source

        def read(place: int, nbytes: int) -> NDArray[np.uint8]:
            return self._base.read(source, place, nbytes)

        return hash_run(start, part.source.nbytes, read, self._hash_leaves, leaves)
