"""The files below a URL: read by ranges through the cache, or fetched whole into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.buckets.bucket_url import is_key
from rlsparse_store.buckets.calls import CONNECTIONS
from rlsparse_store.buckets.connection import PART_BYTES
from rlsparse_store.buckets.object_cache import (
    CachedObject,
    cache_path,
    keep_bounded,
    new_cache_file,
)
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.errors import CheckpointError, NotFoundError
from rlsparse_store.files.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.buckets.objects import ObjectStat

__all__ = ["BucketFolder", "BucketSource", "fetch_files"]

HEAD_BYTES: Final = 16 << 10
"""Bytes of the first request: the header of a delta, or all of a small delta."""

JOINED_GAP: Final = 4 << 10
"""Ranges that are this near each other are read by one request …"""

MOST_JOINED: Final = 32 << 10
"""… as long as no more bytes than these are read besides, at a time."""


class BucketFolder:
    """The files at a URL, as :class:`~rlsparse_store.files.folder.Folder` says.

    Args:
        url: The URL.

    Attributes:
        url: The URL.
    """

    def __init__(self, url: BucketUrl) -> None:
        self.url = url
        self._store = ObjectStore(url)
        self._listed: dict[str, ObjectStat] | None = None

    @property
    def files(self) -> dict[str, ObjectStat]:
        """All objects below the URL, by key. They are listed once.

        Raises:
            BucketError: The storage failed.
        """
        if self._listed is None:
            # Others are no files of a checkpoint or a delta.
            self._listed = {found.key: found for found in self._store.list() if is_key(found.key)}
        return self._listed

    def names(self) -> list[str]:
        """The names of the files in it, without those in folders within."""
        return [key for key in self.files if "/" not in key]

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self.files

    def open(self, name: str) -> BucketSource:
        """Open a file. If the folder was not listed, the file is asked for.

        Raises:
            NotFoundError: There is none.
            BucketError: The storage failed.
        """
        found = self._store.head(name) if self._listed is None else self._listed.get(name)
        if found is None:
            msg = "no such object; check the name"
            raise NotFoundError(msg, file=self.url / name)
        return BucketSource(self._store, found)


class BucketSource(Source):
    """One version of an object. What is read is kept in the cache.

    May be read by threads and by forked processes.

    Args:
        store: Has the object.
        found: The object.

    Raises:
        OutputError: The cache cannot be used.
    """

    def __init__(self, store: ObjectStore, found: ObjectStat) -> None:
        self._store = store
        self._found = found
        self.path = cache_path(store.url / found.key, [found])
        self._cache = CachedObject(self.path)

    @property
    def nbytes(self) -> int:
        """Size in bytes, as the storage says."""
        return self._found.nbytes

    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            ObjectConflictError: The object was replaced.
            BucketError: The storage failed.
            OutputError: The cache cannot be written.
        """
        if offset + out.size > self.nbytes:
            msg = f"ends at byte {self.nbytes}, before what is read"
            raise CheckpointError(msg, file=self.path)
        end = max(offset + out.size, min(HEAD_BYTES, self.nbytes) if offset == 0 else 0)
        self.prefetch([(offset, end)])
        while not self._cache.read_into(out.data, offset):
            # Another process deleted it.
            self.prefetch([(offset, offset + out.size)])

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Read ranges into the cache, several at once, before they are read one by one.

        Args:
            ranges: First byte and the byte after the last one of each.

        Raises:
            ObjectConflictError: The object was replaced.
            BucketError: The storage failed.
            OutputError: The cache cannot be written.
        """
        gaps = [gap for span in ranges for gap in self._cache.missing(*span)]
        parts = [part for span in _joined(gaps) for part in _parts(*span)]
        for first in range(0, len(parts), CONNECTIONS):
            some = parts[first : first + CONNECTIONS]
            found = self._store.get_ranges(self._found.key, some, version=self._found.version)
            for (start, _), data in zip(some, found, strict=True):
                self._cache.add(start, data)
        if parts:
            _kept.count(sum(end - start for start, end in parts))

    def close(self) -> None:
        """Do nothing: no connection stays open."""


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that overlap or are near each other."""
    joined: list[tuple[int, int]] = []
    left = MOST_JOINED
    for start, end in sorted(ranges):
        gap = start - joined[-1][1] if joined else left + 1
        if gap <= min(JOINED_GAP, left):
            left -= max(0, gap)
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _parts(start: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(start, end, PART_BYTES):
        yield first, min(end, first + PART_BYTES)


class _Kept:
    """Counts what this process adds to the cache, whose size is checked now and then."""

    CHECKED_BYTES: Final = 256 << 20

    def __init__(self) -> None:
        self._left = 0

    def count(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            self._left = self.CHECKED_BYTES
            keep_bounded()


_kept = _Kept()


def fetch_files(folder: BucketFolder, names: Iterable[str]) -> Path:
    """Fetch whole files into the cache, if they are not there.

    Args:
        folder: The files.
        names: Those to fetch: keys relative to the folder.

    Returns:
        The local folder with these files.

    Raises:
        ObjectConflictError: An object was replaced meanwhile.
        BucketError: The storage failed.
        OutputError: The cache cannot be written.
    """
    found = [folder.files[name] for name in names]
    place = cache_path(folder.url, found)
    store = ObjectStore(folder.url)
    for stat in found:
        path = place / stat.key
        if not (path.is_file() and path.stat().st_size == stat.nbytes):
            _fetch(store, stat, path)
            _kept.count(stat.nbytes)
    return place


def _fetch(store: ObjectStore, found: ObjectStat, path: Path) -> None:
    """Fetch one object into a file, which appears when it is complete."""
    parts = list(_parts(0, found.nbytes))
    with new_cache_file(path) as file:
        for first in range(0, len(parts), CONNECTIONS):
            some = parts[first : first + CONNECTIONS]
            for data in store.get_ranges(found.key, some, version=found.version):
                file.write(data)
