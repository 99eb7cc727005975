"""A delta of one file, taken apart so that any piece of it can be exchanged."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import zstandard

from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.delta_writer import container_header
from rlsparse_store.format.digests import bytes_check, checksum
from rlsparse_store.format.header import frame_header
from rlsparse_store.format.index.writer import encode_index
from rlsparse_store.format.strict_json import canonical

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from format_vectors.checkpoints import Json
    from rlsparse_store.format.index.records import ChunkRecord, Index, TensorRecord

DELTA: Final = "delta.safetensors"


def unchanged(data: bytes) -> bytes:
    """The bytes as they are."""
    return data


def compressed(content: bytes) -> bytes:
    """One frame as the format wants it."""
    return zstandard.ZstdCompressor(
        level=12, write_content_size=True, write_checksum=False, write_dict_id=False
    ).compress(content)


@dataclass(frozen=True)
class Draft:
    """A delta of one file, taken apart so that any piece of it can be exchanged.

    Attributes:
        fields: The manifest.
        index: The index.
        stored: The bytes of each chunk.
    """

    fields: Json
    index: Index
    stored: list[bytes]

    @classmethod
    def read(cls, delta: Path) -> Draft:
        """Take apart the delta in a folder."""
        with DeltaReader(delta) as reader:
            stored = [reader.stored(chunk) for chunk in reader.index.chunks]
            fields = json.loads(reader.shards[0].manifest_text)
            return cls(fields, reader.index, stored)

    @cached_property
    def content(self) -> bytes:
        """The content of the index."""
        return encode_index(self.index)

    @cached_property
    def packed(self) -> bytes:
        """The frame of that."""
        return compressed(self.content)

    def with_tensor(self, name: str, /, **changes: Any) -> Draft:  # noqa: ANN401 - of any field
        """With other fields of one tensor."""
        tensors = [replace(t, **changes) if t.name == name else t for t in self.index.tensors]
        return replace(self, index=replace(self.index, tensors=tensors))

    def with_chunk(self, number: int, **changes: Any) -> Draft:  # noqa: ANN401 - of any field
        """With other fields of one chunk."""
        chunks = list(self.index.chunks)
        chunks[number] = chunks[number]._replace(**changes)
        return replace(self, index=replace(self.index, chunks=chunks))

    def with_chunks(self, chunks: list[ChunkRecord], stored: list[bytes]) -> Draft:
        """With other chunks."""
        return replace(self, index=replace(self.index, chunks=chunks), stored=stored)

    def with_stored(self, number: int, stored: bytes) -> Draft:
        """With other bytes of one chunk, and its check."""
        pieces = list(self.stored)
        pieces[number] = stored
        changes: Json = {"stored": len(stored), "check": bytes_check(stored)}
        return replace(self, stored=pieces).with_chunk(number, **changes)

    def with_content(self, number: int, content: bytes) -> Draft:
        """With another content of one chunk."""
        return self.with_stored(number, compressed(content))

    def with_files(self, **changes: Any) -> Draft:  # noqa: ANN401 - of any field
        """With other fields of the record of files."""
        return replace(self, index=replace(self.index, files=self.index.files._replace(**changes)))

    def tensor(self, name: str) -> TensorRecord:
        """One tensor."""
        return next(t for t in self.index.tensors if t.name == name)

    def chunk_of(self, name: str, nth: int = 0) -> int:
        """The place of the ``nth`` chunk of a tensor."""
        found = [
            i for i, c in enumerate(self.index.chunks) if self.index.tensors[c.tensor].name == name
        ]
        return found[nth]

    def manifest(self, *, totals: bool = True) -> Json:
        """The manifest, with the totals and the digest that the index gives.

        Args:
            totals: Compute the totals; else keep those of before.
        """
        fields = {**self.fields, "tuned": {"digest": self.index.tuned_state()}}
        if totals:
            found = self.index.totals()
            fields["totals"] = {name: getattr(found, name) for name in type(found).__slots__}
        return fields

    def sealed(
        self,
        *,
        manifest: Callable[[Json], Json] = lambda fields: fields,
        text: Callable[[bytes], bytes] = unchanged,
        content: Callable[[bytes], bytes] = unchanged,
        frame: Callable[[bytes], bytes] = unchanged,
        entry: Callable[[bytes], bytes] = unchanged,
        data: Callable[[bytes], bytes] = unchanged,
        header: Callable[[bytes], bytes] = unchanged,
        totals: bool = True,
    ) -> bytes:
        """The file, put together again; each argument exchanges one piece on the way.

        Args:
            manifest: The manifest's fields.
            text: Its text.
            content: The content of the index.
            frame: Its frame.
            entry: The entry ``index``, checksum included.
            data: The chunks.
            header: The JSON text of the header.
            totals: Compute the totals anew.
        """
        manifest_text = text(canonical(manifest(self.manifest(totals=totals))))
        fresh = content(self.content)
        packed = frame(self.packed if fresh == self.content else compressed(fresh))
        packed = entry(checksum(manifest_text, packed).to_bytes(8, "little") + packed)
        chunks = data(b"".join(self.stored))
        head = header(container_header(manifest_text, 1, len(chunks), len(packed)))
        return frame_header(head) + chunks + packed


def plain(stored: bytes) -> bytes:
    """The content of a frame."""
    content: bytes = zstandard.ZstdDecompressor().decompress(stored)
    return content


def fill_index(draft: Draft, more: int) -> bytes:
    """Fill the index to the largest content that its frame may have, and ``more`` bytes."""
    for zeros in range(70_000, 300_000):
        filled = replace(draft, index=replace(draft.index, blocks={"zeros": bytes(zeros)}))
        if len(filled.content) == 65536 + 32 * len(filled.packed) + more:
            return filled.sealed()
    msg = "no length of zeros is right"
    raise ValueError(msg)
