"""Listing a repository at one commit, so that all later requests use that commit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.errors import HubServerError
from rlsparse_store.format.names import is_file_name, printable
from rlsparse_store.hub.calls import retry, transfer_deadline
from rlsparse_store.hub.repo_id import RepoId

if TYPE_CHECKING:
    from rlsparse_store.hub.access import HubAccess

__all__ = ["HubFile", "Listing", "content_id", "list_repo"]

_READ_BYTES: Final = 4 << 20


class HubFile(NamedTuple):
    """A file of a repository.

    Attributes:
        nbytes: Size in bytes.
        content: In hex, the SHA-256 of a large file, or the git blob id of another file.
    """

    nbytes: int
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repo: The repository, with the commit as revision.
        files: Files by path.
        is_private: Whether the repository is private.
        card: Metadata of the model card.
    """

    repo: RepoId
    files: dict[str, HubFile]
    is_private: bool
    card: dict[str, Any]


def list_repo(repo: RepoId, what: str, access: HubAccess) -> Listing:
    """List a repository and resolve its revision to a commit.

    Args:
        repo: The repository and its revision.
        what: What the repository is, for errors: "base" or "delta".
        access: How to reach the Hub.

    Raises:
        NotFoundError: The repository or revision does not exist or is not accessible.
        HubError: The Hub failed.
    """
    api = access.api()
    info: Any = retry(
        lambda: api.model_info(repo.repo, revision=repo.revision, files_metadata=True),
        what,
        repo,
        transfer_deadline(access, 0, reports_progress=False),
    )
    pinned = RepoId(repo.repo, info.sha)
    if not pinned.is_pinned or info.siblings is None:
        msg = f"the Hub's listing of the {what} has no commit or no files; try again later"
        raise HubServerError(msg, file=printable(str(repo)))
    files = {
        sibling.rfilename: HubFile(
            sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or ""
        )
        for sibling in info.siblings
        # Ignore names that are not plain paths on every system.
        if all(is_file_name(part.removeprefix(".")) for part in sibling.rfilename.split("/"))
    }
    card = info.card_data.to_dict() if info.card_data else {}
    return Listing(repo=pinned, files=files, is_private=bool(info.private), card=card)


def content_id(content: Path | bytes, like: str) -> str:
    """Return the Hub's id of a file's content: its SHA-256 or its git blob id.

    Args:
        content: The file or its bytes.
        like: An id of the same kind: 64 hex digits for SHA-256, 40 for a git blob id.

    Example:
        >>> content_id(b"", "0" * 40)
        'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    if len(like) == 64:
        digest = hashlib.sha256()
    else:
        nbytes = content.stat().st_size if isinstance(content, Path) else len(content)
        digest = hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
