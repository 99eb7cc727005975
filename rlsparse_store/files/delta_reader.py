"""Opening a delta: every header, the manifest and the index are checked before anything is used."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from rlsparse_store.errors import (
    ChecksumError,
    FormatError,
    IndexFormatError,
    LimitError,
    MissingFileError,
    NotFoundError,
    StreamError,
    TooLargeError,
)
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.collector import collector_paused
from rlsparse_store.files.delta_writer import container_header
from rlsparse_store.files.folder import LocalFolder
from rlsparse_store.files.neighbours import neighbours
from rlsparse_store.format.digests import bytes_check, checksum
from rlsparse_store.format.file_names import (
    DELTA_FOLDER,
    INDEX_FILE,
    SINGLE_FILE,
    entry_name,
    shard_name,
)
from rlsparse_store.format.frames import content_size, decompress
from rlsparse_store.format.header import HeaderError, HeaderLimitError
from rlsparse_store.format.index.reader import decode_index
from rlsparse_store.format.limits import (
    MAX_CONTAINER_HEADER,
    MAX_FILES,
    MAX_SHARD_LIST,
    max_index_content,
)
from rlsparse_store.format.manifest import Manifest, parse_fields, parse_manifest
from rlsparse_store.format.names import printable
from rlsparse_store.format.strict_json import (
    JsonDepthError,
    StrictJsonError,
    parse,
    parse_document,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rlsparse_store.files.folder import Folder
    from rlsparse_store.files.source import Source
    from rlsparse_store.format.index.records import ChunkRecord, Index

__all__ = ["DeltaReader", "Shard"]


class Shard(NamedTuple):
    """An open file of a delta: its bytes, its manifest, and where its chunks and index lie."""

    source: Source
    manifest_text: bytes
    features: list[str]
    data_start: int
    data_bytes: int
    index_bytes: int | None


class DeltaReader(Closeable):
    """An open delta. Chunks are read one at a time; their bytes are checked first.

    Args:
        path: The delta's folder, which holds ``rlsparse/``.
        files: The files in ``rlsparse/``, if they are not on disk.
        max_tuned_bytes: Bytes of all tuned tensors that the caller accepts.

    Attributes:
        path: The delta's folder.
        manifest: What the delta says of itself.
        index: Its tensors and chunks.
        shards: Its files with chunks, in order; the last one has the index.
        names: The names of all files of ``rlsparse/`` that belong to it.
        nbytes: Their bytes.

    Raises:
        NotFoundError: There is no delta at this place.
        FormatError: It breaks the format.
        TooLargeError: Its tuned checkpoint has more than ``max_tuned_bytes``.
    """

    def __init__(
        self, path: Path, files: Folder | None = None, *, max_tuned_bytes: int | None = None
    ) -> None:
        self.path = path
        self.shards: list[Shard] = []
        folder = path / DELTA_FOLDER
        if files is None and not folder.is_dir():
            raise NotFoundError(_why_no_delta(path), file=printable(str(path)))
        files = files or LocalFolder(folder)
        try:
            names, extra = _find_shards(files)
            self.names = [*names, *([INDEX_FILE] if extra else [])]
            for number, name in enumerate(names, 1):
                has_index = number == len(names)
                self.shards.append(_open_shard(files.open(name), number, has_index=has_index))
            last = self.shards[-1]
            _require_equal_features(self.shards)
            self.manifest: Manifest = parse_manifest(last.manifest_text, len(names))
            self.index: Index = _read_index(self.shards)
            self._check_totals()
            self._check_size(max_tuned_bytes)
        except FormatError as error:
            self.close()
            error.file = error.file or folder
            raise
        except BaseException:
            self.close()
            raise
        self.nbytes = extra + sum(shard.source.nbytes for shard in self.shards)

    def _check_totals(self) -> None:
        if self.manifest.totals != self.index.totals():
            msg = "the manifest's totals are not those of the index"
            raise IndexFormatError(msg)

    def _check_size(self, most: int | None) -> None:
        nbytes = self.manifest.totals.tuned_bytes
        if most is not None and nbytes > most:
            msg = (
                f"the tuned checkpoint takes {nbytes} bytes, more than {most}, the most that this "
                "call accepts (max_tuned_bytes, --max-tuned-bytes)"
            )
            raise TooLargeError(msg)

    def check_state(self) -> None:
        """Require that the tuned checkpoint's digest is the one that the index gives.

        Raises:
            IndexFormatError: It is not.
        """
        if self.manifest.tuned_digest != self.index.tuned_state():
            msg = "the manifest's digest of the tuned checkpoint is not that of the index"
            raise IndexFormatError(msg, file=self.path)

    def prefetch(self, chunks: Iterable[ChunkRecord]) -> None:
        """Fetch the stored bytes of chunks that will be read, as :meth:`Source.prefetch` does."""
        ranges: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for chunk in chunks:
            start = self.shards[chunk.shard].data_start + chunk.offset
            ranges[chunk.shard].append((start, start + chunk.stored))
        for shard, some in ranges.items():
            self.shards[shard].source.prefetch(some)

    def stored(self, chunk: ChunkRecord, *, checked: bool = True) -> bytes:
        """The stored bytes of a chunk.

        Args:
            chunk: The chunk.
            checked: Whether they are compared with their check.

        Raises:
            ChecksumError: They are not the ones that were written.
        """
        shard = self.shards[chunk.shard]
        stored = shard.source.read(shard.data_start + chunk.offset, chunk.stored)
        if checked:
            self._check_stored(chunk, stored)
        return stored

    def stored_each(self, chunks: list[ChunkRecord]) -> list[bytes]:
        """The stored bytes of chunks, as :meth:`stored` gives those of one.

        Neighbours in a file are read in one call.
        """
        found: list[bytes] = []
        for first, stop in neighbours([(c.shard, c.offset, c.stored) for c in chunks]):
            run = chunks[first:stop]
            shard, begin = self.shards[run[0].shard], run[0].offset
            nbytes = sum(chunk.stored for chunk in run)
            together = shard.source.read(shard.data_start + begin, nbytes)
            for chunk in run:
                start = chunk.offset - begin
                stored = together[start : start + chunk.stored]
                self._check_stored(chunk, stored)
                found.append(stored)
        return found

    def _check_stored(self, chunk: ChunkRecord, stored: bytes) -> None:
        if bytes_check(stored) != chunk.check:
            msg = "the stored bytes are damaged; copy or download the delta again"
            name = printable(self.index.tensors[chunk.tensor].name)
            raise ChecksumError(msg, file=self.shards[chunk.shard].source.path, tensor=name)

    def close(self) -> None:
        """Close the files."""
        for shard in self.shards:
            shard.source.close()


def _why_no_delta(path: Path) -> str:
    if not path.exists():
        return "no such folder (Hub ids look like ORG/NAME)"
    within = sorted(found.parent.name for found in path.glob(f"*/{DELTA_FOLDER}"))
    if within:
        return (
            "holds deltas in folders: name one by its path or by --subfolder, such as "
            f"{printable(within[0])}"
        )
    path = path.absolute()
    folder = path.parent.parent if path.parent.name == DELTA_FOLDER else path.parent
    if any((folder / DELTA_FOLDER / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return f"is a part of the delta {printable(str(folder))}: give that folder"
    return (
        f"holds no {DELTA_FOLDER}/ folder, so it is no delta; give the folder above "
        f"{DELTA_FOLDER}/ (inspect takes BASE TUNED, too)"
    )


def _find_shards(files: Folder) -> tuple[list[str], int]:
    """The names of the delta's files, in order, and the bytes of their index file."""
    if files.has(SINGLE_FILE) == files.has(INDEX_FILE):
        both = "both a single file and an index of shards"
        both = both if files.has(SINGLE_FILE) else "no delta file"
        msg = f"has {both}; copy or download the delta again"
        raise MissingFileError(msg)
    if files.has(SINGLE_FILE):
        return [SINGLE_FILE], 0
    with files.open(INDEX_FILE) as source:
        if source.nbytes > MAX_SHARD_LIST:
            msg = f"has {source.nbytes} bytes; at most {MAX_SHARD_LIST} are accepted"
            raise LimitError(msg, file=source.path)
        text = source.read(0, source.nbytes)
    try:
        return _names_in(text, files), len(text)
    except FormatError as error:
        error.file = error.file or source.path
        raise


def _names_in(text: bytes, files: Folder) -> list[str]:
    try:
        fields: Any = parse_document(text, any_number=True)
    except JsonDepthError as error:
        raise LimitError(str(error)) from error
    except StrictJsonError as error:
        raise MissingFileError(str(error)) from error
    weight_map = fields.get("weight_map") if isinstance(fields, dict) else None
    count = len(weight_map) - 1 if isinstance(weight_map, dict) else 0
    if count > MAX_FILES:
        msg = f"names {count} shards; at most {MAX_FILES} are accepted"
        raise LimitError(msg)
    expected = {entry_name(k): shard_name(k, count) for k in range(1, count + 1)}
    if count < 2 or weight_map != {**expected, "index": shard_name(count, count)}:
        msg = "does not name exactly the shards of a delta"
        raise MissingFileError(msg)
    for name in expected.values():
        if not files.has(name):
            msg = f"the shard {name} is missing; copy or download the delta again"
            raise MissingFileError(msg)
    return list(expected.values())


def _require_equal_features(shards: list[Shard]) -> None:
    if any(shard.features != shards[-1].features for shard in shards):
        msg = "its shards do not list the same features"
        raise FormatError(msg)


def _open_shard(source: Source, number: int, *, has_index: bool) -> Shard:
    try:
        return _read_shard(source, number, has_index=has_index)
    except FormatError as error:
        source.close()
        error.file = source.path
        raise
    except BaseException:
        source.close()
        raise


def _read_shard(source: Source, number: int, *, has_index: bool) -> Shard:
    try:
        header = source.read_header(MAX_CONTAINER_HEADER)
    except HeaderLimitError as error:
        raise LimitError(str(error)) from error
    except HeaderError as error:
        raise FormatError(str(error)) from error
    manifest_text, data, index = _parse_header(header, number, has_index=has_index)
    if 8 + len(header) + data + (index or 0) != source.nbytes:
        msg = f"has {source.nbytes} bytes, and its header describes another length"
        raise FormatError(msg)
    features = parse_fields(manifest_text, number)["features"]
    return Shard(source, manifest_text, features, 8 + len(header), data, index)


def _parse_header(header: bytes, number: int, *, has_index: bool) -> tuple[bytes, int, int | None]:
    """Manifest, bytes of data and bytes of index; the header must be the canonical one."""
    text = header.rstrip(b" ")
    try:
        fields: Any = parse(text, most_objects=len(text))
        manifest_text = fields["__metadata__"]["rlsparse"].encode("ascii")
        data = fields[entry_name(number)]["shape"][0]
        index = fields["index"]["shape"][0] if has_index else None
        expected = container_header(manifest_text, number, data, index)
    except StrictJsonError as error:
        msg = f"its header: {error}"
        raise FormatError(msg) from error
    except (KeyError, TypeError, AttributeError, IndexError, UnicodeEncodeError) as error:
        msg = "its header is not that of a delta"
        raise FormatError(msg) from error
    numbers = [data] if index is None else [data, index]
    if text != expected or len(header) % 8 or not all(type(n) is int and n >= 0 for n in numbers):
        msg = "its header is not canonical"
        raise FormatError(msg)
    return manifest_text, data, index


def _read_index(shards: list[Shard]) -> Index:
    shard = shards[-1]
    assert shard.index_bytes is not None  # noqa: S101 - the last shard was opened with one
    entry = shard.source.read(shard.data_start + shard.data_bytes, shard.index_bytes)
    if len(entry) < 8:
        msg = "the index is cut short"
        raise IndexFormatError(msg)
    frame = entry[8:]
    if checksum(*(s.manifest_text for s in shards), frame) != int.from_bytes(entry[:8], "little"):
        msg = "the index or the manifest is damaged; copy or download the delta again"
        raise ChecksumError(msg, file=shard.source.path)
    largest = max_index_content(len(frame))
    try:
        if content_size(frame) > largest:
            msg = f"the index announces more than {largest} bytes"
            raise LimitError(msg)
        content = decompress(frame, largest)
    except StreamError as error:
        raise IndexFormatError(error.message) from error
    with collector_paused():
        return decode_index(content, [s.data_bytes for s in shards], shard.features)
