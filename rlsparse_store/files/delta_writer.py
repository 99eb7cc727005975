"""Writing the files of a delta: chunks as they come, the index and the headers at the end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from rlsparse_store.errors import CheckpointError, LimitError, ResultMismatchError
from rlsparse_store.files.output import OutputFile, close_all, output_errors
from rlsparse_store.format.digests import bytes_check, checksum
from rlsparse_store.format.file_names import INDEX_FILE, entry_name, shard_name
from rlsparse_store.format.frames import compress_bytes
from rlsparse_store.format.header import frame_header
from rlsparse_store.format.index.writer import encode_index
from rlsparse_store.format.limits import MAX_CONTAINER_HEADER, MAX_FILES, max_index_content
from rlsparse_store.format.manifest import Manifest, shard_fields
from rlsparse_store.format.strict_json import canonical

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rlsparse_store.format.index.records import Index

__all__ = [
    "ChunkLocation",
    "ChunkSink",
    "CountingSink",
    "DeltaWriter",
    "IndexSink",
    "LastShard",
    "RankShard",
    "container_header",
    "pack_index",
]

PIECE_BYTES = 1 << 18
"""Bytes of chunks to write in one call, at least."""

INDEX_LEVEL = 12
"""Compression level of the index, which is small and written once."""


class ChunkLocation(NamedTuple):
    """Where a chunk was put: its shard, from 0, and its offset in the shard's data."""

    shard: int
    offset: int


class IndexSink(Protocol):
    """Takes the index of a delta."""

    def finish(self, index: Index, manifest: Manifest) -> int:
        """Store the index and return the bytes of all files."""


class ChunkSink(IndexSink, Protocol):
    """Takes chunks in the order of the index, then the index."""

    def add(self, stored: bytes, check: int) -> ChunkLocation:
        """Store a chunk, whose bytes have this check."""


def pack_index(index: Index, manifest_texts: list[bytes]) -> bytes:
    """The ``index`` entry: checksum of all manifests and the frame, and the frame.

    Raises:
        CheckpointError: The index is smaller than readers accept for its content.
    """
    content = encode_index(index)
    frame = compress_bytes(content, INDEX_LEVEL)
    if len(content) > max_index_content(len(frame)):
        msg = (
            "the texts in its files' headers are long and repeat themselves more than a delta can "
            "keep: save it with shorter metadata"
        )
        raise CheckpointError(msg)
    return checksum(*manifest_texts, frame).to_bytes(8, "little") + frame


def container_header(manifest_text: bytes, shard: int, data: int, index: int | None) -> bytes:
    """The JSON text of the header of one file of a delta.

    Args:
        manifest_text: The manifest.
        shard: Number of the file, from 1.
        data: Bytes of its chunks.
        index: Bytes of the index entry, or ``None`` if it has none.
    """
    fields: dict[str, object] = {
        "__metadata__": {"rlsparse": manifest_text.decode("ascii")},
        entry_name(shard): {"dtype": "U8", "shape": [data], "data_offsets": [0, data]},
    }
    if index is not None:
        offsets = [data, data + index]
        fields["index"] = {"dtype": "U8", "shape": [index], "data_offsets": offsets}
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def _reserved_header_bytes(largest: bytes) -> int:
    """Bytes to keep for a header while its numbers are not known yet.

    Args:
        largest: A manifest at least as long as the final one.
    """
    text = container_header(largest, MAX_FILES, 10**15, 10**10)
    room = len(frame_header(text))
    if room > MAX_CONTAINER_HEADER:
        msg = f"a manifest of {len(text)} bytes is too long"
        raise LimitError(msg)
    return room


class _Shard:
    """One file being written: room for the header first, then chunks."""

    def __init__(self, path: Path, number: int, reserved: int) -> None:
        self.number = number
        self.file = OutputFile(path)
        self.data = 0
        self._reserved = reserved
        self._pending: list[tuple[bytes, int]] = []
        self._written = 0

    def add(self, stored: bytes, check: int) -> int:
        offset = self.data
        self._pending.append((stored, check))
        self.data += len(stored)
        if self.data - self._written >= PIECE_BYTES:
            self._write_pending()
        return offset

    def _write_pending(self) -> None:
        """Write chunks that were too small to be written one by one."""
        pending, self._pending = self._pending, []
        # What the proof accepted may have waited in memory for a while.
        if any(bytes_check(stored) != check for stored, check in pending):
            msg = "a chunk changed after it was encoded; the memory may be faulty"
            raise ResultMismatchError(msg, file=self.file.path)
        content = pending[0][0] if len(pending) == 1 else b"".join(stored for stored, _ in pending)
        self.file.write(content, self._reserved + self._written)
        self._written += len(content)

    def finish(self, manifest_text: bytes, index: bytes | None) -> int:
        self._write_pending()
        size = None if index is None else len(index)
        text = container_header(manifest_text, self.number, self.data, size)
        padded = text.ljust(self._reserved - 8)
        self.file.write(len(padded).to_bytes(8, "little") + padded, 0)
        if index is not None:
            self.file.write(index, self._reserved + self.data)
        self.file.close()
        return self._reserved + self.data + (size or 0)


class DeltaWriter:
    """Writes a delta into a folder.

    Args:
        folder: The ``rlsparse`` folder, which must exist and be empty.
        largest: A manifest at least as long as the final one: room is kept for it.
        shard_bytes: Chunk bytes after which a new file is begun.
    """

    def __init__(self, folder: Path, largest: Manifest, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._reserved = _reserved_header_bytes(largest.text(MAX_FILES))
        self._shards: list[_Shard] = []
        self._open_shard()

    def _open_shard(self) -> None:
        number = len(self._shards) + 1
        if number > MAX_FILES:
            msg = f"more than {MAX_FILES} shards; choose a larger shard size"
            raise LimitError(msg)
        path = self._folder / f"shard-{number}"
        self._shards.append(_Shard(path, number, self._reserved))

    def add(self, stored: bytes, check: int) -> ChunkLocation:
        """Store a chunk, whose bytes have this check.

        Raises:
            OutputError: It cannot be written.
            ResultMismatchError: A chunk changed in memory before it was written.
            LimitError: There are too many shards.
        """
        shard = self._shards[-1]
        if shard.data and shard.data + len(stored) > self._shard_bytes:
            self._open_shard()
            shard = self._shards[-1]
        return ChunkLocation(shard.number - 1, shard.add(stored, check))

    def finish(self, index: Index, manifest: Manifest) -> int:
        """Store the index, write the headers, give the files their names.

        Raises:
            OutputError: They cannot be written.
        """
        last = self._shards[-1]
        texts = [canonical(shard_fields(shard.number)) for shard in self._shards[:-1]]
        texts.append(manifest.text(last.number))
        total = last.finish(texts[-1], pack_index(index, texts))
        for shard, text in zip(self._shards[:-1], texts[:-1], strict=True):
            total += shard.finish(text, None)
        for shard in self._shards:
            name = shard_name(shard.number, len(self._shards))
            with output_errors(self._folder / name):
                shard.file.path.rename(self._folder / name)
        if len(self._shards) > 1:
            total += _write_list(self._folder, len(self._shards))
        return total

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files; after :meth:`finish` they are closed already."""
        close_all([shard.file for shard in self._shards], failed=error is not None)


def _write_list(folder: Path, count: int) -> int:
    """Write the list of shards, and return its length."""
    weight_map = {entry_name(number): shard_name(number, count) for number in range(1, count + 1)}
    weight_map["index"] = shard_name(count, count)
    fields = {"metadata": {}, "weight_map": weight_map}
    text = (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
    with OutputFile(folder / INDEX_FILE) as file:
        file.write(text, 0)
    return len(text)


class RankShard:
    """The shard that one of several processes writes. The last shard holds the index.

    Args:
        folder: The ``rlsparse`` folder.
        number: Number of the shard, from 1.
        count: Number of shards with the last one.
    """

    def __init__(self, folder: Path, number: int, count: int) -> None:
        self._text = canonical(shard_fields(number))
        reserved = _reserved_header_bytes(self._text)
        self._shard = _Shard(folder / shard_name(number, count), number, reserved)

    def add(self, stored: bytes, check: int) -> ChunkLocation:
        """Store a chunk, whose bytes have this check.

        Raises:
            OutputError: It cannot be written.
            ResultMismatchError: A chunk changed in memory before it was written.
        """
        return ChunkLocation(self._shard.number - 1, self._shard.add(stored, check))

    def finish(self) -> int:
        """Write the header, flush the file, and return its length.

        Raises:
            OutputError: It cannot be written.
        """
        return self._shard.finish(self._text, None)

    def __enter__(self) -> Self:
        """Return the shard itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; after :meth:`finish` it is closed already."""
        close_all([self._shard.file], failed=error is not None)


class LastShard:
    """The shard with the index of chunks that others have written.

    Args:
        folder: The ``rlsparse`` folder.
        count: Number of shards with this one.
        nbytes: Bytes of the other shards.
    """

    def __init__(self, folder: Path, count: int, nbytes: int) -> None:
        self._folder = folder
        self._count = count
        self._nbytes = nbytes

    def finish(self, index: Index, manifest: Manifest) -> int:
        """Write index and list of shards, and return the bytes of all files.

        Raises:
            OutputError: They cannot be written.
        """
        count = self._count
        texts = [canonical(shard_fields(number)) for number in range(1, count)]
        texts.append(manifest.text(count))
        entry = pack_index(index, texts)
        header = frame_header(container_header(texts[-1], count, 0, len(entry)))
        with OutputFile(self._folder / shard_name(count, count)) as file:
            file.write(header + entry, 0)
        return self._nbytes + len(header) + len(entry) + _write_list(self._folder, count)


class CountingSink:
    """Counts what a delta of one file would take, and writes nothing.

    Args:
        largest: As for :class:`DeltaWriter`.
    """

    def __init__(self, largest: Manifest) -> None:
        self._header = _reserved_header_bytes(largest.text(MAX_FILES))
        self._data = 0

    def add(self, stored: bytes, check: int) -> ChunkLocation:  # noqa: ARG002 - as ChunkSink
        """Count a chunk."""
        offset = self._data
        self._data += len(stored)
        return ChunkLocation(0, offset)

    def finish(self, index: Index, manifest: Manifest) -> int:
        """Return the bytes of the file."""
        return self._header + self._data + len(pack_index(index, [manifest.text(1)]))
