"""Range requests for files on the Hub: the header and index of a delta, without its chunks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import ChecksumError, HubServerError, NotFoundError
from rlsparse_store.files.source import Source
from rlsparse_store.format.names import printable
from rlsparse_store.hub.calls import retry, transfer_deadline
from rlsparse_store.hub.listing import content_id
from rlsparse_store.hub.ranges import request_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import HubFile, Listing

__all__ = ["HubFolder", "read_small_file"]

HEAD_BYTES: Final = 16 << 10
"""Bytes of the first request: the header of a delta, or all of a small delta."""

MAX_SMALL_FILE: Final = 16 << 20
"""Bytes of the largest file that is read into memory."""


class HubFolder:
    """The files in one folder of a repository.

    Args:
        listing: The repository at one commit.
        folder: Path of the folder; empty for the root.
        access: How to reach the Hub.
    """

    def __init__(self, listing: Listing, folder: str, access: HubAccess) -> None:
        self._listing = listing
        self._prefix = f"{folder}/" if folder else ""
        self._access = access

    def names(self) -> list[str]:
        """The names of the files in it, without those in folders within."""
        names = (
            path.removeprefix(self._prefix)
            for path in self._listing.files
            if path.startswith(self._prefix)
        )
        return [name for name in names if "/" not in name]

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of this name."""
        return self._prefix + name in self._listing.files

    def open(self, name: str) -> RemoteSource:
        """Open a file without a request.

        Raises:
            NotFoundError: The file does not exist.
        """
        path = self._prefix + name
        file = self._listing.files.get(path)
        if file is None:
            raise NotFoundError("no such file", file=f"{self._listing.repo}/{path}")
        return RemoteSource(self._listing, path, file, self._access)


def read_small_file(listing: Listing, path: str, access: HubAccess) -> bytes:
    """Read a small file of a repository and compare it with its content id.

    Raises:
        NotFoundError: The file does not exist.
        HubError: The Hub failed, or the file is too large.
        ChecksumError: The received bytes do not match the content id.
    """
    with HubFolder(listing, "", access).open(path) as source:
        if source.nbytes > MAX_SMALL_FILE:
            msg = f"{printable(path)} has {source.nbytes} bytes; the limit is {MAX_SMALL_FILE}"
            raise HubServerError(msg, file=printable(str(listing.repo)))
        data = source.read(0, source.nbytes)
    content = listing.files[path].content
    if content and content_id(data, content) != content:
        msg = f"{printable(path)}: the download does not match the Hub's checksum; try again later"
        raise ChecksumError(msg, file=printable(str(listing.repo)))
    return data


class RemoteSource(Source):
    """A file on the Hub. Each read is a request, except for reads of the first bytes.

    The Hub's content ids cover whole files and cannot verify parts: readers need their own checks.
    """

    def __init__(self, listing: Listing, name: str, file: HubFile, access: HubAccess) -> None:
        self.path = Path(str(listing.repo), name)
        self._repo = listing.repo
        self._name = name
        self._nbytes = file.nbytes
        self._access = access
        self._head = b""

    @property
    def nbytes(self) -> int:
        """Size in bytes, as listed by the Hub."""
        return self._nbytes

    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            HubError: The Hub failed.
        """
        end = offset + out.size
        if end <= HEAD_BYTES and not self._head:
            self._head = self._fetch(0, min(HEAD_BYTES, self._nbytes))
        part = self._head[offset:end] if end <= len(self._head) else self._fetch(offset, end)
        out[:] = np.frombuffer(part, np.uint8)

    def _fetch(self, start: int, end: int) -> bytes:
        deadline = transfer_deadline(self._access, end - start, reports_progress=False)
        return retry(lambda: self._request(start, end), "file", self._repo, deadline)

    def _request(self, start: int, end: int) -> bytes:
        import huggingface_hub  # noqa: PLC0415 - only for repository ids

        url = huggingface_hub.hf_hub_url(self._repo.repo, self._name, revision=self._repo.revision)
        return request_range(url, start, end, self.path, self._access).data

    def close(self) -> None:
        """Do nothing: no connection stays open."""
