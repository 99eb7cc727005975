"""What a repository holds at one commit: asked for once, and then everything by that commit."""

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

_PIECE: Final = 4 << 20


class HubFile(NamedTuple):
    """A file of a repository.

    Attributes:
        nbytes: Its length.
        content: Its sha256 if it is stored as a large file, else git's id of it, in hex.
    """

    nbytes: int
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repo: The repository, and the commit as its revision.
        files: Its files by path.
        is_private: Whether only some may see it.
        card: The fields at the front of its card.
    """

    repo: RepoId
    files: dict[str, HubFile]
    is_private: bool
    card: dict[str, Any]


def list_repo(repo: RepoId, what: str, access: HubAccess) -> Listing:
    """List a repository, and pin its revision to a commit.

    Args:
        repo: The repository and its revision.
        what: What it is asked for as, for errors: the base or the delta.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is none, or it may not be seen.
        HubError: The Hub failed.
    """
    api = access.api()
    info: Any = retry(
        lambda: api.model_info(repo.repo, revision=repo.revision, files_metadata=True),
        what,
        repo,
        transfer_deadline(access, 0, is_watched=False),
    )
    pinned = RepoId(repo.repo, info.sha)
    if not pinned.is_pinned or info.siblings is None:
        msg = f"the Hub did not say which files the {what} has at which commit"
        raise HubServerError(msg, file=printable(str(repo)))
    files = {
        sibling.rfilename: HubFile(
            sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or ""
        )
        for sibling in info.siblings
        # A name that is no plain path on every system is nothing that we know.
        if all(is_file_name(part) for part in sibling.rfilename.lstrip(".").split("/"))
    }
    card = info.card_data.to_dict() if info.card_data else {}
    return Listing(repo=pinned, files=files, is_private=bool(info.private), card=card)


def content_id(content: Path | bytes, like: str) -> str:
    """What the Hub calls a content: its sha256, or git's id of it.

    Args:
        content: A file or its bytes.
        like: An id of the kind that is wanted: of 64 digits, or of 40.

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
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
