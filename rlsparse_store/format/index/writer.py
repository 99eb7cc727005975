"""Writing the index of a delta (``specs/format.md`` section 10)."""

from __future__ import annotations

from rlsparse_store.format.index.columns import ColumnWriter
from rlsparse_store.format.index.records import ChunkCoding, ChunkRecord, Index, Kind, TensorRecord

__all__ = ["encode_index"]


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
    for _, block in sorted(index.features.items()):
        out.text(block)
    out.integers([len(index.blocks)])
    for name, block in sorted(index.blocks.items()):
        out.text(name.encode())
        out.text(block)
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
