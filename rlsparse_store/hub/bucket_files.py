"""Files in a bucket on the Hub: listed, and read by ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from rlsparse_store.errors import NotFoundError
from rlsparse_store.hub.calls import map_concurrently, retry, transfer_deadline
from rlsparse_store.hub.ranges import Part, request_range
from rlsparse_store.hub.repo_id import RepoId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.hub.access import HubAccess

__all__ = ["BucketFile", "HubBucket"]

WHAT = "bucket"
"""What the requests are for, in error messages."""


class BucketFile(NamedTuple):
    """A file in a bucket.

    Attributes:
        path: Its path.
        nbytes: Its size in bytes.
        content: Hash of its content, by which the Hub stores it.
        modified: When it was uploaded, in seconds since 1970.
    """

    path: str
    nbytes: int
    content: str
    modified: float


class HubBucket:
    """A bucket on the Hub, for reading.

    Args:
        name: ``ORG/NAME``.
        access: How to reach the Hub.
    """

    def __init__(self, name: str, access: HubAccess) -> None:
        self._name = name
        self._access = access
        self._place = RepoId(f"hf://buckets/{name}")

    def files(self, prefix: str) -> list[BucketFile]:
        """List the files in a folder, and in the folders in it.

        Args:
            prefix: The folder; empty for all.

        Raises:
            NotFoundError: There is no such bucket.
            HubError: The Hub failed.
        """
        api = self._access.api()

        def request() -> list[Any]:
            return list(api.list_bucket_tree(self._name, prefix or None, recursive=True))

        items = retry(request, WHAT, self._place, self._deadline(0))
        inside = f"{prefix}/" if prefix else ""
        files = (_file(item) for item in items if item.type == "file")
        return sorted(file for file in files if file.path.startswith(inside))

    def find(self, path: str) -> BucketFile:
        """Ask for the size and the content of a file.

        Raises:
            NotFoundError: There is none.
            HubError: The Hub failed.
        """
        api = self._access.api()

        def request() -> list[Any]:
            return list(api.get_bucket_paths_info(self._name, [path]))

        found = [_file(item) for item in retry(request, WHAT, self._place, self._deadline(0))]
        if [file.path for file in found] != [path]:
            msg = "no such object; check the name"
            raise NotFoundError(msg, file=f"{self._place}/{path}")
        return found[0]

    def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[Part]:
        """Read ranges of bytes of a file, each by a request, several at once.

        Raises:
            NotFoundError: There is no such file.
            HubError: The Hub failed.
        """
        url = f"{self._access.api().endpoint}/buckets/{self._name}/resolve/{quote(path)}"
        place = f"{self._place}/{path}"

        def read(span: tuple[int, int]) -> Part:
            start, end = span
            deadline = self._deadline(end - start)
            return retry(
                lambda: request_range(url, start, end, place, self._access),
                WHAT,
                self._place,
                deadline,
            )

        return map_concurrently(read, ranges)

    def _deadline(self, nbytes: int) -> Any:  # noqa: ANN401 - of ``hub.calls``
        return transfer_deadline(self._access, nbytes, reports_progress=False)


def _file(item: Any) -> BucketFile:  # noqa: ANN401 - the client's
    uploaded = item.uploaded_at or item.mtime
    return BucketFile(item.path, item.size, item.xet_hash, uploaded.timestamp() if uploaded else 0)
