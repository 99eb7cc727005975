"""Reading files on the Hub by ranges: the front and the index of a delta, without its chunks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.errors import ChecksumError, HubServerError, NotFoundError
from rlsparse_store.files.source import Source
from rlsparse_store.format.names import printable
from rlsparse_store.hub.calls import retry, transfer_deadline
from rlsparse_store.hub.listing import content_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import HubFile, Listing

__all__ = ["HubFolder", "read_small_file"]

FRONT: Final = 16 << 10
"""Bytes asked for at first: the header of a delta, and all of a small one."""

LARGEST: Final = 16 << 20
"""Bytes: nothing larger is a small file."""


class HubFolder:
    """The files in one folder of a repository.

    Args:
        listing: The repository at one commit.
        folder: The folder within; empty for the repository itself.
        access: How to reach the Hub.
    """

    def __init__(self, listing: Listing, folder: str, access: HubAccess) -> None:
        self._listing = listing
        self._prefix = f"{folder}/" if folder else ""
        self._access = access

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._prefix + name in self._listing.files

    def open(self, name: str) -> RemoteSource:
        """A file. Nothing of it is read yet.

        Raises:
            NotFoundError: There is none.
        """
        path = self._prefix + name
        file = self._listing.files.get(path)
        if file is None:
            raise NotFoundError("no such file", file=f"{self._listing.repo}/{path}")
        return RemoteSource(self._listing, path, file, self._access)


def read_small_file(listing: Listing, path: str, access: HubAccess) -> bytes:
    """A small file of a repository, compared with the Hub's id of it.

    Raises:
        NotFoundError: There is none.
        HubError: The Hub failed, or the file is not small.
        ChecksumError: What came is not what the Hub says it is.
    """
    with HubFolder(listing, "", access).open(path) as source:
        if source.nbytes > LARGEST:
            msg = f"{printable(path)} has {source.nbytes} bytes; at most {LARGEST} are read"
            raise HubServerError(msg, file=printable(str(listing.repo)))
        data = source.read(0, source.nbytes)
    content = listing.files[path].content
    if content and content_id(data, content) != content:
        msg = f"{printable(path)}: what came is not what the Hub says it is; try again later"
        raise ChecksumError(msg, file=printable(str(listing.repo)))
    return data


class RemoteSource(Source):
    """A file on the Hub, each read of which is a request, but for those of its front.

    The Hub's ids cover whole files, so they cannot be compared with parts: who reads parts has to
    have checks of its own.
    """

    def __init__(self, listing: Listing, name: str, file: HubFile, access: HubAccess) -> None:
        self.path = Path(str(listing.repo), name)
        self._repo = listing.repo
        self._name = name
        self._nbytes = file.nbytes
        self._access = access
        self._front = b""

    @property
    def nbytes(self) -> int:
        """Its length, as the Hub lists it."""
        return self._nbytes

    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            HubError: The Hub failed, or does not give parts of files.
        """
        end = offset + out.size
        if end <= FRONT and not self._front:
            self._front = self._fetch(0, min(FRONT, self._nbytes))
        part = self._front[offset:end] if end <= len(self._front) else self._fetch(offset, end)
        out[:] = np.frombuffer(part, np.uint8)

    def _fetch(self, start: int, end: int) -> bytes:
        patience = transfer_deadline(self._access, end - start, is_watched=False)
        return retry(lambda: self._request(start, end), "file", self._repo, patience)

    def _request(self, start: int, end: int) -> bytes:
        import huggingface_hub  # noqa: PLC0415 - an id was given
        from huggingface_hub import utils as exported  # noqa: PLC0415 - as above

        utils: Any = exported  # it does not say that it exports these

        url = huggingface_hub.hf_hub_url(self._repo.repo, self._name, revision=self._repo.revision)
        headers = utils.build_hf_headers(token=self._access.token, library_name="rlsparse-store")
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        parts, got = [], 0
        with utils.get_session().stream(
            "GET", url, headers=headers, follow_redirects=True
        ) as response:
            utils.hf_raise_for_status(response)
            # A server may ignore ranges and send everything: then no more is taken than the range.
            skip = start if response.status_code == 200 else 0
            for part in response.iter_bytes(1 << 16):
                parts.append(part[max(0, skip - got) :] if got < skip else part)
                got += len(part)
                if got >= skip + end - start:
                    break
        data = b"".join(parts)[: end - start]
        if len(data) != end - start:
            msg = f"the Hub sent {len(data)} of {end - start} bytes; try again later"
            raise HubServerError(msg, file=self.path)
        return data

    def close(self) -> None:
        """Nothing is open."""
