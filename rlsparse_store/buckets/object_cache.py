"""The cache on disk of objects in buckets: whole files, and ranges of bytes.

Each entry is a folder whose name is a digest of what it holds, versions included: an entry is never
out of date. Within it, files have the path of their URL, by which errors name them. The entries
that were used longest ago are deleted when all of them exceed ``RLSPARSE_CACHE_BYTES``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from rlsparse_store.buckets.local_folder import local_folder
from rlsparse_store.errors import OutputError
from rlsparse_store.files.output import output_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.buckets.objects import ObjectStat

__all__ = [
    "CachedObject",
    "cache_path",
    "is_cache_path",
    "keep_bounded",
    "new_cache_file",
]

LIMIT: Final = "RLSPARSE_CACHE_BYTES"
"""Environment variable: bytes of all entries."""

_DEFAULT_LIMIT: Final = 64 << 30

SAFE_SECONDS: Final = 3600.0
"""An entry that was used so recently may be in use, and is kept."""

_FOLDER: Final = "objects"
_SPAN: Final = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)
_ENTRY: Final = re.compile(rf".*/{_FOLDER}/[0-9a-f]{{64}}/(s3|gs)/")


def _cache_errors() -> AbstractContextManager[None]:
    """Turn errors of the file system into :class:`OutputError`, which names the cache."""
    return output_errors(local_folder(_FOLDER))


def cache_path(url: BucketUrl, versions: Iterable[ObjectStat] = ()) -> Path:
    """The place in the cache for what is at a URL.

    Args:
        url: The URL.
        versions: What of it is kept.

    Returns:
        A path that ends as the URL does. It may not exist.

    Raises:
        OutputError: Another user may write to the cache.
    """
    digest = hashlib.sha256(str(url).encode())
    for found in sorted(versions):
        digest.update(f"\n{found.key}\n{found.nbytes} {found.version.e_tag}".encode())
    entry = _root() / digest.hexdigest()
    with _cache_errors(), suppress(FileNotFoundError):
        os.utime(entry)
    return entry.joinpath(url.scheme, url.bucket, *filter(None, url.prefix.split("/")))


def is_cache_path(path: Path) -> bool:
    """Whether this is a path of :func:`cache_path`, or below one."""
    return _ENTRY.match(f"{path.absolute()}/") is not None


def _root() -> Path:
    """The folder of all entries, which only its user may read and write.

    Raises:
        OutputError: Another user may write to it, or it cannot be made.
    """
    root = local_folder(_FOLDER)
    with _cache_errors():
        root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        found = root.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        msg = "another user may write to it; set RLSPARSE_CACHE to a folder of your own"
        raise OutputError(msg, file=root)
    return root


@contextmanager
def new_cache_file(path: Path) -> Iterator[IO[bytes]]:
    """A file of the cache to write, which appears completely or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with _cache_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                # Without this, a power cut could leave a file of the right length and of zeros.
                os.fdatasync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class CachedObject:
    """The ranges of one version of an object that are on disk.

    Threads and processes may use one entry at once; at worst, they keep a range twice.

    Args:
        folder: The folder of the ranges, of :func:`cache_path`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spans = self._found()

    def _found(self) -> tuple[tuple[int, int], ...]:
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 - names only
        except FileNotFoundError:
            return ()
        found = [(int(m[1]), int(m[2])) for name in names if (m := _SPAN.fullmatch(name))]
        return tuple(sorted(found))

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that are not kept."""
        gaps = []
        for first, last in self._spans:
            if last <= start:
                continue
            if first >= end or start >= end:
                break
            if first > start:
                gaps.append((start, first))
            start = max(start, last)
        if start < end:
            gaps.append((start, end))
        return gaps

    def add(self, start: int, data: bytes) -> None:
        """Keep a range.

        Raises:
            OutputError: It cannot be written.
        """
        span = start, start + len(data)
        with new_cache_file(self.folder / f"{span[0]}-{span[1]}") as file:
            file.write(data)
        # Replaced as a whole: other threads read it, and a lock could be held in a fork.
        self._spans = tuple(sorted({*self._spans, span}))

    def read_into(self, out: memoryview, start: int) -> bool:
        """Fill ``out`` with the bytes from ``start`` on.

        Returns:
            Whether all of them are kept. Otherwise what was deleted is forgotten.
        """
        end = start + len(out)
        for first, last in self._spans:
            if last <= start:
                continue
            if first > start or start >= end:
                break
            part = out[len(out) - (end - start) :][: last - start]
            if not self._read(first, last, part, start - first):
                self._spans = self._found()
                return False
            start += len(part)
        return start >= end

    def _read(self, first: int, last: int, part: memoryview, offset: int) -> bool:
        path = self.folder / f"{first}-{last}"
        with _cache_errors():
            try:
                with path.open("rb", buffering=0) as file:
                    if os.fstat(file.fileno()).st_size == last - first:
                        file.seek(offset)
                        return file.readinto(part) == len(part)
            except FileNotFoundError:
                return False
            # It was cut short, by a full disk or by hand.
            path.unlink(missing_ok=True)
            return False


def keep_bounded() -> None:
    """Delete the entries that were used longest ago, if all of them exceed the limit.

    Raises:
        OutputError: Another user may write to the cache.
    """
    root = _root()
    limit = _limit()
    entries = []
    for entry in root.iterdir():
        with suppress(OSError):  # another process may delete it
            entries.append((entry.stat().st_mtime, entry, _nbytes(entry)))
    total = sum(nbytes for _, _, nbytes in entries)
    newest = time.time() - SAFE_SECONDS
    for used, entry, nbytes in sorted(entries):
        if total <= limit or used > newest:
            return
        total -= nbytes
        shutil.rmtree(entry, ignore_errors=True)


def _limit() -> int:
    try:
        return max(0, int(os.environ.get(LIMIT, "")))
    except ValueError:
        return _DEFAULT_LIMIT


def _nbytes(entry: Path) -> int:
    return sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(entry)
        for name in names
    )
