"""A process that calls obstore for one that was forked after obstore had started.

Requests and answers are frames: the lengths of a JSON text and of the bytes that belong to it, then
both. The process ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from rlsparse_store import errors
from rlsparse_store.buckets.connection import ObstoreConnection
from rlsparse_store.buckets.objects import ABSENT, ObjectStat, ObjectVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlsparse_store.buckets.connection import Condition

__all__ = ["HelperConnection", "main"]

_LENGTHS: Final = struct.Struct("<QQ")


class HelperConnection:
    """A connection by obstore in another process, which the first request starts.

    Every method raises what that of :class:`ObstoreConnection` raises, and :class:`BucketError` if
    the process cannot be started or ends.

    Args:
        scheme: ``s3`` or ``gs``.
        bucket: Name of the bucket.
    """

    def __init__(self, scheme: str, bucket: str) -> None:
        self._place = scheme, bucket
        # One request at a time.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def get(self, key: str) -> tuple[bytes, ObjectVersion]:
        """Read a small object, as :class:`ObstoreConnection` does."""
        fields, data = self._ask({"verb": "get", "key": key})
        return data, ObjectVersion(*fields["version"])

    def get_ranges(
        self, key: str, ranges: Sequence[tuple[int, int]], version: ObjectVersion | None
    ) -> list[bytes]:
        """Read ranges of an object, as :class:`ObstoreConnection` does."""
        asked = {"verb": "get_ranges", "key": key, "ranges": list(ranges), "version": version}
        data = memoryview(self._ask(asked)[1])
        parts = []
        for start, end in ranges:
            parts.append(bytes(data[: end - start]))
            data = data[end - start :]
        return parts

    def head(self, key: str) -> ObjectStat:
        """Ask for the size of an object, as :class:`ObstoreConnection` does."""
        return _stat(self._ask({"verb": "head", "key": key})[0]["found"])

    def list(self, prefix: str) -> list[ObjectStat]:
        """List objects, as :class:`ObstoreConnection` does."""
        return [_stat(found) for found in self._ask({"verb": "list", "prefix": prefix})[0]["found"]]

    def put(self, key: str, data: bytes | Path, only_if: Condition) -> ObjectVersion:
        """Write an object, as :class:`ObstoreConnection` does."""
        condition = only_if.value if only_if is ABSENT else only_if
        path = str(data.absolute()) if isinstance(data, Path) else None
        asked = {"verb": "put", "key": key, "path": path, "only_if": condition}
        fields, _ = self._ask(asked, b"" if isinstance(data, Path) else data)
        return ObjectVersion(*fields["version"])

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, as :class:`ObstoreConnection` does."""
        self._ask({"verb": "delete", "keys": list(keys)})

    def _ask(self, fields: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        with self._lock:
            try:
                answer = self._exchange(fields, data)
            except OSError as error:
                self._end()
                msg = f"a process for obstore cannot be started or ended ({error}); try again"
                raise errors.BucketError(msg, file="://".join(self._place)) from None
            except BaseException:
                # An interrupt: what is left of the answer must not be taken for the next one.
                self._end()
                raise
        if "error" in answer[0]:
            kind = getattr(errors, answer[0]["error"])
            raise kind(answer[0]["message"], file=answer[0]["file"])
        return answer

    def _exchange(self, fields: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101 - as above
        _send(process.stdin, fields, data)
        answer = _receive(process.stdout)
        if answer is None:
            msg = "it ended"
            raise OSError(msg)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # The process imports what this one does, and leaves Ctrl-C to this one.
        process = subprocess.Popen(  # noqa: S603 - this module
            [sys.executable, "-P", "-m", __name__, *self._place],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        weakref.finalize(self, _kill, process, os.getpid())
        return process

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process, os.getpid())
            self._process = None


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a process, unless this one was forked from the one that started it."""
    if os.getpid() == owner:
        process.kill()
        process.communicate()


def _stat(fields: list[Any]) -> ObjectStat:
    key, nbytes, modified, version = fields
    return ObjectStat(key, nbytes, modified, ObjectVersion(*version))


def _send(stream: IO[bytes], fields: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps(fields).encode()
    stream.write(_LENGTHS.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; ``None`` at the end."""
    start = stream.read(_LENGTHS.size)
    if len(start) < _LENGTHS.size:
        return None
    text_bytes, data_bytes = _LENGTHS.unpack(start)
    text, data = stream.read(text_bytes), stream.read(data_bytes)
    if len(data) < data_bytes:
        return None
    return json.loads(text), data


def _answer(
    connection: ObstoreConnection, asked: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    verbs: dict[str, Callable[[], tuple[dict[str, Any], bytes]]] = {
        "get": lambda: _get(connection, asked),
        "get_ranges": lambda: _get_ranges(connection, asked),
        "head": lambda: ({"found": connection.head(asked["key"])}, b""),
        "list": lambda: ({"found": connection.list(asked["prefix"])}, b""),
        "put": lambda: _put(connection, asked, data),
        "delete": lambda: _delete(connection, asked),
    }
    return verbs[asked["verb"]]()


def _get(connection: ObstoreConnection, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    data, version = connection.get(asked["key"])
    return {"version": version}, data


def _get_ranges(
    connection: ObstoreConnection, asked: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    version = ObjectVersion(*asked["version"]) if asked["version"] else None
    ranges = [(start, end) for start, end in asked["ranges"]]
    return {}, b"".join(connection.get_ranges(asked["key"], ranges, version))


def _put(
    connection: ObstoreConnection, asked: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    asked_for = asked["only_if"]
    condition: Condition = ABSENT if asked_for == ABSENT.value else None
    if isinstance(asked_for, list):
        condition = ObjectVersion(*asked_for)
    body = data if asked["path"] is None else Path(asked["path"])
    return {"version": connection.put(asked["key"], body, condition)}, b""


def _delete(connection: ObstoreConnection, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    connection.delete(asked["keys"])
    return {}, b""


def main(scheme: str, bucket: str) -> None:
    """Answer requests about a bucket until there are no more.

    Args:
        scheme: ``s3`` or ``gs``.
        bucket: Name of the bucket.
    """
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    connection = None
    while (received := _receive(requests)) is not None:
        asked, data = received
        try:
            connection = connection or ObstoreConnection(scheme, bucket)
            fields, body = _answer(connection, asked, data)
        except errors.RlsparseError as error:
            fields = {"error": type(error).__name__, "message": error.message}
            fields["file"], body = None if error.file is None else str(error.file), b""
        _send(answers, fields, body)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
