"""The objects below one place in object storage: read, listed, written under conditions."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rlsparse_store.buckets.bucket_url import HUB_SCHEME, check_key
from rlsparse_store.buckets.connection import ObstoreConnection
from rlsparse_store.buckets.helper_process import HelperConnection
from rlsparse_store.buckets.hub_connection import HubConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.buckets.connection import Condition, Connection
    from rlsparse_store.buckets.objects import ObjectStat, ObjectVersion

__all__ = ["ObjectStore"]


class _Connections:
    """The connections of this process, one per bucket.

    A process that was forked makes its own. If obstore was imported before, its threads did not
    survive the fork, and a call of it would wait forever: a process of its own calls it then.
    """

    def __init__(self) -> None:
        self._opened: dict[tuple[str, str, int], Connection] = {}
        self._is_threadless = False
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._opened = {}
        self._is_threadless = self._is_threadless or "obstore" in sys.modules

    def to(self, url: BucketUrl) -> Connection:
        """The connection to the bucket of a URL."""
        # obstore reads the environment once: with other settings, another connection is opened.
        key = url.scheme, url.bucket, hash(tuple(sorted(filter(_is_setting, os.environ.items()))))
        found = self._opened.get(key)
        if found is None:
            kind = self._kind(url.scheme)
            found = self._opened.setdefault(key, kind(url.scheme, url.bucket))
        return found

    def _kind(self, scheme: str) -> Callable[[str, str], Connection]:
        if scheme == HUB_SCHEME:
            return HubConnection
        return HelperConnection if self._is_threadless else ObstoreConnection


def _is_setting(variable: tuple[str, str]) -> bool:
    return variable[0].startswith(("AWS_", "GOOGLE_", "RLSPARSE_BUCKET_"))


_connections = _Connections()


class ObjectStore:
    """The objects below a place in object storage. May be used by threads and forked processes.

    Credentials, endpoint and region come from the environment, as obstore reads them.

    Args:
        url: The place.

    Attributes:
        url: The place.

    Raises:
        MissingDependencyError: obstore is not installed. Every method raises it.

    Example:
        >>> from rlsparse_store.buckets.bucket_url import parse_bucket_url
        >>> store = ObjectStore(parse_bucket_url("s3://bucket/runs"))
        >>> store.get("qwen/run.json")  # doctest: +SKIP
    """

    def __init__(self, url: BucketUrl) -> None:
        self.url = url

    def get(self, key: str) -> tuple[bytes, ObjectVersion]:
        """Read a small object.

        Args:
            key: Its key, relative to the place.

        Returns:
            Its bytes, and their version for a write that compares and swaps.

        Raises:
            NotFoundError: There is none.
            BucketError: The storage failed, or the object has more than 64 MiB.
        """
        return self._connection.get(self._whole(key))

    def get_ranges(
        self,
        key: str,
        ranges: Sequence[tuple[int, int]],
        *,
        version: ObjectVersion | None = None,
    ) -> list[bytes]:
        """Read ranges of bytes of an object: one request for each, several at once.

        Args:
            key: Its key, relative to the place.
            ranges: First byte and the byte after the last one of each range.
            version: The version to read; by default any.

        Raises:
            NotFoundError: There is no such object.
            ObjectConflictError: It no longer has this version.
            BucketError: The storage failed, or a range goes beyond the object's end.
        """
        return self._connection.get_ranges(self._whole(key), ranges, version)

    def head(self, key: str) -> ObjectStat:
        """Ask for the size and the version of an object.

        Raises:
            NotFoundError: There is none.
            BucketError: The storage failed.
        """
        return self._connection.head(self._whole(key))._replace(key=key)

    def list(self, prefix: str = "") -> list[ObjectStat]:
        """List the objects below a folder, and in the folders below it, by key.

        Args:
            prefix: The folder, relative to the place; empty for all.

        Raises:
            NotFoundError: There is no such bucket.
            BucketError: The storage failed.
        """
        whole = self._whole(prefix.removesuffix("/")) if prefix else self.url.prefix
        start = len(self.url.prefix) + 1 if self.url.prefix else 0
        found = self._connection.list(whole)
        return [stat._replace(key=stat.key[start:]) for stat in found]

    def put(self, key: str, data: bytes | Path, *, only_if: Condition = None) -> ObjectVersion:
        """Write an object: all of it, or nothing.

        Args:
            key: Its key, relative to the place.
            data: Its bytes, or a file with them. A large file is sent in parts.
            only_if: ``ABSENT`` to create an object; a version to replace that version; by default
                an object is replaced. Conditions are for up to 256 MiB.

        Returns:
            The version that was written.

        Raises:
            ObjectConflictError: The condition does not hold.
            BucketError: The storage failed.
        """
        return self._connection.put(self._whole(key), data, only_if)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error.

        Raises:
            BucketError: The storage failed. Some may have been deleted.
        """
        self._connection.delete([self._whole(key) for key in keys])

    @property
    def _connection(self) -> Connection:
        return _connections.to(self.url)

    def _whole(self, key: str) -> str:
        """The key in the bucket."""
        check_key(key, str(self.url))
        return f"{self.url.prefix}/{key}" if self.url.prefix else key
