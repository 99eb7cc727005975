"""The connection to one bucket: obstore, called with retries, deadlines and translated errors.

Credentials, endpoint and region come from the environment as obstore reads them. They are never
arguments, and obstore's errors, which may repeat them, end here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from rlsparse_store.buckets.calls import (
    ATTEMPTS,
    run_all,
    seconds_for,
    timeout,
    with_retries,
)
from rlsparse_store.buckets.errors import changed, failure, settings_error, too_large, too_late
from rlsparse_store.buckets.objects import ABSENT, Absent, ObjectStat, ObjectVersion
from rlsparse_store.errors import (
    BucketError,
    MissingDependencyError,
    ObjectConflictError,
    RlsparseError,
)
from rlsparse_store.installing import install_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Condition", "Connection", "ObstoreConnection"]

T = TypeVar("T")

Condition = ObjectVersion | Absent | None
"""When to write: if the object has this version; if there is none; always."""

PART_BYTES: Final = 16 << 20
"""Bytes of the parts in which large files are sent. A smaller file is sent by one request."""

MOST_LISTED: Final = 500_000
"""Objects of the longest listing."""

MOST_READ: Final = 64 << 20
"""Bytes of the largest object that is read in one piece."""

MOST_CONDITIONAL: Final = 256 << 20
"""Bytes of the largest object that is written under a condition: obstore sends it from memory."""


class Connection(Protocol):
    """The objects of one bucket. Keys are whole. May be used by several threads."""

    def get(self, key: str) -> tuple[bytes, ObjectVersion]:
        """Read a small object."""

    def get_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], version: ObjectVersion | None
    ) -> list[bytes]:
        """Read ranges of bytes of an object, of one version if it is given."""

    def head(self, key: str) -> ObjectStat:
        """Ask for the size and the version of an object."""

    def list(self, prefix: str) -> list[ObjectStat]:
        """List the objects below a prefix."""

    def put(self, key: str, data: bytes | Path, only_if: Condition) -> ObjectVersion:
        """Write an object."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects."""


class ObstoreConnection:
    """A connection by obstore, in the process that opened it.

    Args:
        scheme: ``s3`` or ``gs``.
        bucket: Name of the bucket.

    Raises:
        MissingDependencyError: obstore is not installed.
        BucketError: The environment has settings that obstore does not take.
    """

    def __init__(self, scheme: str, bucket: str) -> None:
        self._bucket = f"{scheme}://{bucket}"
        try:
            import obstore  # noqa: PLC0415 - an extra
            from obstore import exceptions  # noqa: PLC0415 - as above
            from obstore import store as stores  # noqa: PLC0415 - as above
        except ImportError as error:
            msg = f"object storage needs obstore: {install_command('cloud')}"
            raise MissingDependencyError(msg, file=self._bucket) from error
        self._obstore: Any = obstore
        self._base_error: type[Exception] = exceptions.BaseError
        kind: Any = {"s3": stores.S3Store, "gs": stores.GCSStore}[scheme]
        # As configuration, not as client_options: those would replace what the environment says.
        config = {
            "connect_timeout": f"{timeout() / ATTEMPTS:.3f}s",
            "read_timeout": f"{timeout() / ATTEMPTS:.3f}s",
            # Of a whole request. `run_all` bounds it by what it transfers.
            "timeout": "1day",
        }
        try:
            # `with_retries` makes the attempts, and knows of them; of a file that is sent in
            # parts, obstore repeats a part.
            self._store = kind(bucket, config=config, retry_config={"max_retries": 0})
            self._in_parts = kind(bucket, config=config, retry_config={"max_retries": ATTEMPTS})
        except (OSError, ValueError, exceptions.BaseError) as error:
            raise settings_error(error, self._bucket) from None

    def get(self, key: str) -> tuple[bytes, ObjectVersion]:
        """Read a small object.

        Raises:
            NotFoundError: There is none.
            BucketError: The storage failed, or the object is too large.
        """

        def request() -> tuple[bytes, ObjectVersion]:
            found = self._obstore.get(self._store, key)
            if found.meta["size"] > MOST_READ:
                raise too_large(self._place(key), found.meta["size"], MOST_READ)
            return found.bytes().to_bytes(), self._version(found.meta)

        return self._call(request, key)

    def get_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], version: ObjectVersion | None
    ) -> list[bytes]:
        """Read ranges of bytes of an object, each by a request, several at once.

        Raises:
            NotFoundError: There is no such object.
            ObjectConflictError: It no longer has this version.
            BucketError: The storage failed, or a range goes beyond the object's end.
        """
        options = {"if_match": version.e_tag} if version is not None and version.e_tag else {}

        def request(start: int, end: int) -> bytes:
            found = self._obstore.get(self._store, key, options={**options, "range": (start, end)})
            data: bytes = found.bytes().to_bytes()
            if len(data) != end - start:
                msg = f"ends at byte {start + len(data)}: it was cut short while being read"
                raise BucketError(msg, file=self._place(key))
            return data

        tasks = [partial(self._try, partial(request, *span), key) for span in ranges]
        nbytes = sum(end - start for start, end in ranges)
        try:
            return run_all(tasks, seconds_for(nbytes), self._late(key))
        except ObjectConflictError:
            raise changed(self._place(key)) from None

    def head(self, key: str) -> ObjectStat:
        """Ask for the size and the version of an object.

        Raises:
            NotFoundError: There is none.
            BucketError: The storage failed.
        """
        return self._call(lambda: self._stat(self._obstore.head(self._store, key)), key)

    def list(self, prefix: str) -> list[ObjectStat]:
        """List the objects whose keys begin with the parts of a prefix, by key.

        Raises:
            NotFoundError: There is no such bucket.
            BucketError: The storage failed.
        """

        def request() -> list[ObjectStat]:
            found: list[ObjectStat] = []
            for page in self._obstore.list(self._store, prefix or None, chunk_size=1000):
                found += map(self._stat, page)
                if len(found) > MOST_LISTED:
                    msg = f"more than {MOST_LISTED} objects are below it; give a place within"
                    raise BucketError(msg, file=self._place(prefix))
            return found

        return sorted(self._call(request, prefix))

    def put(self, key: str, data: bytes | Path, only_if: Condition) -> ObjectVersion:
        """Write an object: all of it, or nothing.

        An attempt whose answer was lost may have written it. If the next one finds the object with
        these bytes, that was it.

        Raises:
            ObjectConflictError: The condition does not hold.
            BucketError: The storage failed.
        """
        nbytes = data.stat().st_size if isinstance(data, Path) else len(data)
        if only_if is None and nbytes > PART_BYTES:
            return self._call(partial(self._put_parts, key, data), key, nbytes)
        if nbytes > MOST_CONDITIONAL:
            msg = (
                f"{nbytes} bytes cannot be written under a condition; at most {MOST_CONDITIONAL} "
                "can"
            )
            raise BucketError(msg, file=self._place(key))
        body = data.read_bytes() if isinstance(data, Path) else data
        mode: Any = "create" if only_if is ABSENT else "overwrite"
        if isinstance(only_if, ObjectVersion):
            mode = {name: value for name, value in only_if._asdict().items() if value is not None}

        def request() -> ObjectVersion:
            return self._version(
                self._obstore.put(self._store, key, body, mode=mode, use_multipart=False)
            )

        def attempt(is_another: bool) -> ObjectVersion:  # noqa: FBT001 - of `with_retries`
            try:
                return self._once(request, key)
            except ObjectConflictError:
                written = self._written_before(key, body) if is_another else None
                if written is None:
                    raise
                return written

        return run_all([lambda: with_retries(attempt)], seconds_for(nbytes), self._late(key))[0]

    def _put_parts(self, key: str, data: bytes | Path) -> ObjectVersion:
        put = self._obstore.put
        return self._version(
            put(self._in_parts, key, data, chunk_size=PART_BYTES, max_concurrency=4)
        )

    def _written_before(self, key: str, body: bytes) -> ObjectVersion | None:
        """The version of an object that has these bytes."""
        found = self._obstore.get(self._store, key)
        same = found.meta["size"] == len(body) and found.bytes().to_bytes() == body
        return self._version(found.meta) if same else None

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist are no error.

        Raises:
            BucketError: The storage failed.
        """
        if keys:
            self._call(lambda: self._delete(keys), keys[0])

    def _delete(self, keys: Sequence[str]) -> None:
        try:
            self._obstore.delete(self._store, [*keys])
        except FileNotFoundError:
            # GCS says so of an object that an earlier attempt deleted.
            for key in keys:
                try:
                    self._obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue

    def _call(self, request: Callable[[], T], key: str, nbytes: int = PART_BYTES) -> T:
        """Make a request that may be repeated."""
        return run_all([lambda: self._try(request, key)], seconds_for(nbytes), self._late(key))[0]

    def _try(self, request: Callable[[], T], key: str) -> T:
        return with_retries(lambda _: self._once(request, key))

    def _once(self, request: Callable[[], T], key: str) -> T:
        try:
            return request()
        except RlsparseError:
            raise
        except (OSError, ValueError, self._base_error) as error:
            translated = failure(error, self._place(key))
        # Not from the error of obstore: a traceback would print it.
        raise translated

    def _late(self, key: str) -> Callable[[], Exception]:
        return lambda: too_late(self._place(key))

    def _place(self, key: str) -> str:
        return f"{self._bucket}/{key}" if key else self._bucket

    def _version(self, meta: Any) -> ObjectVersion:  # noqa: ANN401 - obstore's dictionaries
        # S3 compares entity tags only, and a listing of it has no versions.
        version = None if self._bucket.startswith("s3:") else meta["version"]
        return ObjectVersion(meta["e_tag"], version)

    def _stat(self, meta: Any) -> ObjectStat:  # noqa: ANN401 - as above
        modified = meta["last_modified"].timestamp()
        return ObjectStat(meta["path"], meta["size"], modified, self._version(meta))
