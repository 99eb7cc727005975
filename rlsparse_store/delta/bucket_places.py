"""Deltas and checkpoints at URLs in object storage: read by ranges, or fetched into the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.buckets.bucket_url import BucketUrl, parse_bucket_url
from rlsparse_store.buckets.object_cache import cache_path
from rlsparse_store.buckets.remote_folder import BucketFolder, fetch_files
from rlsparse_store.errors import CheckpointError, NotFoundError
from rlsparse_store.files.checkpoint import open_files
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.foreign_formats import no_weights, unsafe_file
from rlsparse_store.files.weight_files import SUFFIX, WeightFiles, choose_weight_files
from rlsparse_store.format.file_names import DELTA_FOLDER, folder_of_delta
from rlsparse_store.format.names import printable
from rlsparse_store.hub.selection import CheckpointSelection, FileSelection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike
    from pathlib import Path

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.hub.access import HubAccess

__all__ = [
    "as_bucket_url",
    "fetch_checkpoint_at",
    "fetch_delta_at",
    "folders_at",
    "folders_with_deltas",
    "open_checkpoint_at",
    "read_delta_at",
    "require_local",
]

_LISTED: Final = 5
"""Folders that a message names."""


def as_bucket_url(
    place: str | PathLike[str], revision: str | None, access: HubAccess
) -> BucketUrl | None:
    """The URL that a name is, or ``None`` if it is a local path or an id on the Hub.

    Args:
        place: The name.
        revision: A revision on the Hub, which a URL does not have.
        access: Whether requests are allowed.

    Raises:
        NotFoundError: It is a URL that cannot be read with these arguments.
    """
    url = parse_bucket_url(place)
    if url is None:
        return None
    if revision is not None:
        msg = f"is a URL of object storage, which has no revision ({printable(revision)})"
        raise NotFoundError(msg, file=url)
    if access.local_files_only:
        msg = "object storage is not read with local_files_only (--local-files-only)"
        raise NotFoundError(msg, file=url)
    return url


def require_local(place: str | PathLike[str]) -> None:
    """Require that a name is not a URL, where only local folders are read or written.

    Raises:
        NotFoundError: It is one.
    """
    url = parse_bucket_url(place)
    if url is not None:
        msg = "is a URL of object storage, and a local folder is needed here: copy it first"
        raise NotFoundError(msg, file=url)


def read_delta_at(url: BucketUrl, max_tuned_bytes: int | None = None) -> DeltaReader:
    """Open a delta. Its manifest and index are read, and its chunks when they are needed.

    Args:
        url: Where it is.
        max_tuned_bytes: Bytes of all tuned tensors to accept; by default any.

    Raises:
        NotFoundError: There is no such delta.
        FormatError: It is damaged.
        TooLargeError: The tuned checkpoint is larger.
    """
    folder = BucketFolder(url / DELTA_FOLDER)
    if not folder.names():
        raise _no_delta(BucketFolder(url))
    return DeltaReader(cache_path(url), folder, max_tuned_bytes=max_tuned_bytes)


def fetch_delta_at(url: BucketUrl, selection: FileSelection) -> Path:
    """Fetch a delta; its local folder.

    Args:
        url: Where it is.
        selection: Its files.

    Raises:
        NotFoundError: There is no such delta.
    """
    folder = BucketFolder(url)
    if not any(name.startswith(f"{DELTA_FOLDER}/") for name in folder.files):
        raise _no_delta(folder)
    return fetch_files(folder, selection.among(folder.files, folder, cache_path(url)))


def _no_delta(folder: BucketFolder) -> NotFoundError:
    if not folder.files:
        return _nothing(folder.url)
    msg = f"is not a delta: there are no objects below {DELTA_FOLDER}/ in it"
    found = folders_with_deltas(folder.files)
    if found:
        more = ", …" if len(found) > _LISTED else ""
        msg += f"; there are deltas in {printable(', '.join(found[:_LISTED]))}{more} (--subfolder)"
    return NotFoundError(msg, file=folder.url)


def _nothing(url: BucketUrl) -> NotFoundError:
    return NotFoundError("there are no objects below this URL; check the name", file=url)


def folders_with_deltas(names: Iterable[str]) -> list[str]:
    """Folders that hold deltas; an empty string for the folder of all names.

    Args:
        names: Paths of files.
    """
    return sorted({folder for name in names if (folder := folder_of_delta(name)) is not None})


def folders_at(url: BucketUrl) -> list[str]:
    """Folders below a URL that hold deltas; an empty string for the URL itself.

    Args:
        url: The URL.

    Raises:
        BucketError: The object storage failed.
    """
    return folders_with_deltas(BucketFolder(url).files)


def open_checkpoint_at(url: BucketUrl) -> Checkpoint:
    """Open a checkpoint. Its headers are read, and its tensors when they are needed.

    Args:
        url: A folder, or one ``.safetensors`` file.

    Raises:
        NotFoundError: There is none.
        CheckpointError: It is broken.
    """
    folder, weights = _weights(url)
    return open_files(cache_path(folder.url), folder, weights)


def fetch_checkpoint_at(url: BucketUrl, what: str, sides: Sequence[str]) -> Path:
    """Fetch a checkpoint; its local folder or file.

    Args:
        url: A folder, or one ``.safetensors`` file.
        what: What it is, for errors.
        sides: Patterns of the small files to fetch besides the weights.

    Raises:
        NotFoundError: There is none.
        CheckpointError: It is broken.
    """
    folder, weights = _weights(url)
    if folder.url != url:
        return fetch_files(folder, weights.names) / weights.names[0]
    selection = CheckpointSelection(what, sides)
    return fetch_files(folder, selection.among(folder.files, folder, cache_path(url)))


def _weights(url: BucketUrl) -> tuple[BucketFolder, WeightFiles]:
    """The folder of a checkpoint, and its files with weights."""
    parent, _, name = url.prefix.rpartition("/")
    refused = unsafe_file(name, cache_path(url))
    if refused is not None:
        raise refused
    if name.endswith(SUFFIX):
        return BucketFolder(url._replace(prefix=parent)), WeightFiles([name])
    folder = BucketFolder(url)
    if not folder.files:
        raise _nothing(url)
    weights = choose_weight_files(folder, cache_path(url))
    if weights is None and any(name.startswith(f"{DELTA_FOLDER}/") for name in folder.files):
        msg = "is a delta, not a checkpoint; rebuild the checkpoint first (rlsparse apply)"
        raise CheckpointError(msg, file=url)
    if weights is None:
        raise no_weights(folder.files, cache_path(url))
    return folder, weights
