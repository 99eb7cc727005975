"""The connection to a bucket on the Hub, by the Hub's client. It only reads.

The Hub writes objects without conditions, so a second writer of a run could undo what the first one
published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.buckets.connection import MOST_READ
from rlsparse_store.buckets.errors import changed, too_large
from rlsparse_store.buckets.objects import ObjectStat, ObjectVersion
from rlsparse_store.errors import BucketError
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.bucket_files import HubBucket

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rlsparse_store.buckets.connection import Condition
    from rlsparse_store.hub.bucket_files import BucketFile

__all__ = ["HubConnection"]

FOLDER: Final = "buckets/"
"""What comes before the bucket's name in its URL, ``hf://buckets/ORG/NAME``."""


class HubConnection:
    """A connection to a bucket on the Hub.

    Args:
        scheme: ``hf``.
        bucket: ``buckets/ORG/NAME``.
    """

    def __init__(self, scheme: str, bucket: str) -> None:
        self._url = f"{scheme}://{bucket}"
        self._bucket = HubBucket(bucket.removeprefix(FOLDER), HubAccess())

    def get(self, key: str) -> tuple[bytes, ObjectVersion]:
        """Read a small object.

        Raises:
            NotFoundError: There is none.
            BucketError: It is too large.
            HubError: The Hub failed.
        """
        stat = self.head(key)
        if stat.nbytes > MOST_READ:
            raise too_large(f"{self._url}/{key}", stat.nbytes, MOST_READ)
        if not stat.nbytes:
            return b"", stat.version
        return self.get_ranges(key, [(0, stat.nbytes)], stat.version)[0], stat.version

    def get_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], version: ObjectVersion | None
    ) -> list[bytes]:
        """Read ranges of bytes of an object, each by a request, several at once.

        Raises:
            NotFoundError: There is no such object.
            ObjectConflictError: It no longer has this version.
            HubError: The Hub failed.
        """
        parts = self._bucket.read(key, ranges)
        if version is not None:
            said = {part.content for part in parts} - {None}
            if said - {version.e_tag}:
                raise changed(f"{self._url}/{key}")
        return [part.data for part in parts]

    def head(self, key: str) -> ObjectStat:
        """Ask for the size and the version of an object.

        Raises:
            NotFoundError: There is none.
            HubError: The Hub failed.
        """
        return _stat(self._bucket.find(key))

    def list(self, prefix: str) -> list[ObjectStat]:
        """List the objects whose keys begin with the parts of a prefix, by key.

        Raises:
            NotFoundError: There is no such bucket.
            HubError: The Hub failed.
        """
        return [_stat(file) for file in self._bucket.files(prefix)]

    def put(self, key: str, data: bytes | Path, only_if: Condition) -> ObjectVersion:
        """Refuse to write.

        Raises:
            BucketError: Always.
        """
        del data, only_if
        raise self._read_only(key)

    def delete(self, keys: Sequence[str]) -> None:
        """Refuse to delete.

        Raises:
            BucketError: Always.
        """
        raise self._read_only(keys[0] if keys else "")

    def _read_only(self, key: str) -> BucketError:
        msg = (
            "buckets of the Hub are read and not written, because they have no conditional writes: "
            f"write to a folder, then `hf buckets sync FOLDER {self._url}/…`"
        )
        return BucketError(msg, file=f"{self._url}/{key}".rstrip("/"))


def _stat(file: BucketFile) -> ObjectStat:
    return ObjectStat(file.path, file.nbytes, file.modified, ObjectVersion(file.content, None))
