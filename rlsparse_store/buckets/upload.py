"""Uploading a delta: its objects are created, never replaced, and one of them makes it a delta."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import xxhash

from rlsparse_store.buckets.calls import run_all
from rlsparse_store.buckets.connection import MOST_CONDITIONAL, PART_BYTES
from rlsparse_store.buckets.errors import too_late
from rlsparse_store.buckets.objects import ABSENT
from rlsparse_store.errors import NotFoundError, ObjectConflictError, OutputError
from rlsparse_store.files.output import output_errors
from rlsparse_store.format.file_names import DELTA_FOLDER, INDEX_FILE, SINGLE_FILE
from rlsparse_store.format.strict_json import canonical

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from rlsparse_store.buckets.object_store import ObjectStore

__all__ = ["LAST_NAMES", "delta_digest", "file_names", "last_key", "upload_delta"]

LAST_NAMES: Final = (f"{DELTA_FOLDER}/{SINGLE_FILE}", f"{DELTA_FOLDER}/{INDEX_FILE}")
"""The objects that make a delta: without both of them there is none."""

_PIECE: Final = 8 << 20
"""Bytes of an object that are compared at a time."""


def delta_digest(folder: Path) -> str:
    """A digest of the files of a local delta, as 16 hex digits. It tells uploads apart.

    Args:
        folder: The delta's folder.

    Raises:
        OutputError: A file cannot be read.
    """
    files = []
    with output_errors(folder):
        for name, path in sorted(_files(folder).items()):
            content = xxhash.xxh3_128()
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    content.update(piece)
            files.append([name, content.hexdigest()])
    return xxhash.xxh3_64_hexdigest(canonical(files))


def upload_delta(store: ObjectStore, delta: Path, prefix: str = "") -> None:
    """Upload a local delta. Until its last object is written, readers find no delta.

    Where an object exists, from an upload that was killed or from another writer of the same delta,
    it must have the same bytes.

    Args:
        store: Where to.
        delta: The delta's folder.
        prefix: What the objects' keys begin with.

    Raises:
        OutputError: An object of other bytes exists.
        BucketError: The store failed.
    """
    files = _files(delta)
    last = last_key(files)
    run_all(
        [
            partial(_create, store, prefix + name, path, PART_BYTES)
            for name, path in files.items()
            if name != last
        ],
        # Each has a deadline of its own.
        math.inf,
        lambda: too_late(str(store.url)),
    )
    _create(store, prefix + last, files[last], MOST_CONDITIONAL)


def file_names(delta: Path) -> set[str]:
    """The names of a local delta's files, which the keys of its objects end with."""
    return set(_files(delta))


def last_key(names: Collection[str]) -> str:
    """The name of the object that makes a delta of these files: it lists the shards, or is one."""
    single, several = LAST_NAMES
    return several if several in names else single


def _files(folder: Path) -> dict[str, Path]:
    """The files in a folder and those below it, by name with slashes."""
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def _create(store: ObjectStore, key: str, path: Path, most_whole: int) -> None:
    """Write an object that does not exist, or require that it has these bytes.

    Args:
        store: Where to.
        key: Its key.
        path: The file.
        most_whole: Bytes up to which the store itself ensures that nothing is replaced. A larger
            file is sent in parts, which S3 joins under no condition.
    """
    try:
        if path.stat().st_size <= most_whole:
            store.put(key, path, only_if=ABSENT)
            return
        try:
            store.head(key)
        except NotFoundError:
            store.put(key, path)
            return
    except ObjectConflictError:
        pass
    if not _is_same(store, key, path):
        msg = "exists already with other content; remove it or choose another place"
        raise OutputError(msg, file=store.url / key)


def _is_same(store: ObjectStore, key: str, path: Path) -> bool:
    """Whether an object has the bytes of a file."""
    nbytes = path.stat().st_size
    if store.head(key).nbytes != nbytes:
        return False
    with path.open("rb") as file:
        for start in range(0, nbytes, _PIECE):
            (found,) = store.get_ranges(key, [(start, min(start + _PIECE, nbytes))])
            if bytes(found) != file.read(_PIECE):
                return False
    return True
