"""Publishing: large files first, then one commit, which is there completely or not at all."""

from __future__ import annotations

import io
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.errors import HubOfflineError, HubServerError, HubTimeoutError, MovedBranchError
from rlsparse_store.format.names import printable
from rlsparse_store.hub.calls import (
    ATTEMPTS,
    Deadline,
    call,
    map_concurrently,
    retry,
    transfer_deadline,
)
from rlsparse_store.hub.listing import HubFile, Listing, content_id, list_repo
from rlsparse_store.hub.repo_id import RepoId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rlsparse_store.errors import RlsparseError
    from rlsparse_store.hub.access import HubAccess

__all__ = ["Commit", "Published", "create_branch", "create_repo", "is_unchanged", "publish"]

WHAT: Final = "delta"
"""What is published, for errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a commit changes.

    Attributes:
        files: New contents by path in the repository: files, or their bytes.
        deleted: Paths of files to remove.
        message: What the commit is for, in one line.
    """

    files: Mapping[str, Path | bytes]
    deleted: list[str]
    message: str


class Published(NamedTuple):
    """A commit that was made.

    Attributes:
        commit: Its hash.
        url: The page of the commit, or of the pull request.
    """

    commit: str
    url: str


def create_repo(repo: RepoId, *, private: bool | None, access: HubAccess) -> None:
    """Create a repository, unless it exists.

    Args:
        repo: The repository.
        private: Whether only some may see it; by default what its owner's settings say.
        access: How to reach the Hub.

    Raises:
        HubError: The Hub failed, or does not allow it.
    """
    api = access.api()
    retry(
        lambda: api.create_repo(repo.repo, private=private, exist_ok=True),
        WHAT,
        RepoId(repo.repo),
        Deadline(access.timeout),
    )


def create_branch(head: RepoId, branch: str, access: HubAccess) -> None:
    """Create a branch, unless it exists.

    Args:
        head: The repository, and the commit where the branch begins.
        branch: Its name.
        access: How to reach the Hub.

    Raises:
        HubError: The Hub failed, or does not allow it.
    """
    api = access.api()
    retry(
        lambda: api.create_branch(head.repo, branch=branch, revision=head.revision, exist_ok=True),
        WHAT,
        RepoId(head.repo, branch),
        Deadline(access.timeout),
    )


def is_unchanged(content: Path | bytes, there: HubFile | None) -> bool:
    """Whether the Hub has this content already."""
    if there is None or not there.content:
        return False
    nbytes = content.stat().st_size if isinstance(content, Path) else len(content)
    return nbytes == there.nbytes and content_id(content, there.content) == there.content


def publish(
    head: Listing, branch: str | None, changes: Commit, access: HubAccess, *, create_pr: bool
) -> Published:
    """Upload files, then make one commit of them on top of what was listed.

    What was uploaded and never committed is on nobody's way: the Hub keeps large files by their
    content, so that the same call, made again, does not send them again.

    Args:
        head: The branch as it is.
        branch: Its name; the default one by default.
        changes: What the commit changes.
        access: How to reach the Hub.
        create_pr: Whether the commit is proposed in a pull request.

    Raises:
        MovedBranchError: Someone else wrote to the branch in the meantime.
        HubError: The Hub failed, or does not allow it.
    """
    return _Publishing(head, branch, changes, access, create_pr=create_pr).publish()


class _Publishing:
    """One commit on its way."""

    def __init__(
        self,
        head: Listing,
        branch: str | None,
        changes: Commit,
        access: HubAccess,
        *,
        create_pr: bool,
    ) -> None:
        self._repo = RepoId(head.repo.repo, branch)
        self._parent = head.repo.revision
        self._changes = changes
        self._access = access
        self._create_pr = create_pr
        self._api = access.api()

    def publish(self) -> Published:
        with _quiet():
            additions = map_concurrently(self._upload, self._changes.files.items())
            published = self._commit(additions)
        for addition in additions:
            if isinstance(addition.path_or_fileobj, _WatchedFile):
                addition.path_or_fileobj.close()
        there = RepoId(self._repo.repo, published.commit)
        if not self._holds(list_repo(there, WHAT, self._access)):
            msg = (
                f"the Hub does not have what was sent, in commit {published.commit}: look at it, "
                "and publish again"
            )
            raise HubServerError(msg, file=printable(str(self._repo)))
        return published

    def _upload(self, file: tuple[str, Path | bytes]) -> Any:  # noqa: ANN401 - the client's
        """Send a file, if it is one that the Hub keeps apart from commits."""
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - an id was given

        path, content = file
        nbytes = content.stat().st_size if isinstance(content, Path) else len(content)
        patience = transfer_deadline(self._access, nbytes, is_watched=not _sends_by_xet())

        def send() -> Any:  # noqa: ANN401 - the client's
            # A new operation each time: the client keeps in it how far it came.
            addition = CommitOperationAdd(path, _watched(content, patience.renew))
            self._api.preupload_lfs_files(
                self._repo.repo,
                [addition],
                revision=self._repo.revision,
                create_pr=self._create_pr,
                free_memory=False,
                gitignore_content="",
            )
            return addition

        return retry(send, WHAT, self._repo, patience)

    def _commit(self, additions: list[Any]) -> Published:
        """Make the commit once, even if the answer to it is lost."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._commit_once(additions)
            except (HubServerError, HubTimeoutError, HubOfflineError) as error:
                found = self._made_all_the_same(error)
                if found is not None:
                    return found
                if attempt == ATTEMPTS:
                    raise
            except MovedBranchError as error:
                # It may have been an earlier attempt of ours that moved it.
                found = self._made_all_the_same(error) if attempt > 1 else None
                if found is None:
                    raise
                return found
            time.sleep(2.0 ** (attempt - 1))
        raise AssertionError

    def _commit_once(self, additions: list[Any]) -> Published:
        from huggingface_hub import CommitOperationDelete  # noqa: PLC0415 - an id was given

        removals = [CommitOperationDelete(path) for path in self._changes.deleted]

        def commit() -> Published:
            info = self._api.create_commit(
                self._repo.repo,
                [*additions, *removals],
                commit_message=self._changes.message,
                revision=self._repo.revision,
                parent_commit=self._parent,
                create_pr=self._create_pr,
            )
            return Published(str(info.oid), str(info.pr_url or info.commit_url))

        # Small files are sent with the commit itself.
        sent = sum(len(c) for c in self._changes.files.values() if isinstance(c, bytes))
        patience = transfer_deadline(self._access, sent, is_watched=False)
        return call(commit, WHAT, self._repo, patience)

    def _made_all_the_same(self, error: RlsparseError) -> Published | None:
        """The commit, if it was made and only the answer was lost; ``None`` if nothing was.

        Raises:
            MovedBranchError: Someone else wrote to the branch.
        """
        if self._create_pr:
            msg = (
                "the answer was lost: look at the repository's pull requests before you publish "
                "again, for there may be one already"
            )
            raise HubServerError(msg, file=printable(str(self._repo))) from error
        now = list_repo(self._repo, WHAT, self._access)
        if now.repo.revision == self._parent:
            return None
        if self._holds(now):
            commit = str(now.repo.revision)
            return Published(commit, f"{self._api.endpoint}/{self._repo.repo}/commit/{commit}")
        msg = "someone else wrote to the branch in the meantime: look at it, and publish again"
        raise MovedBranchError(msg, file=printable(str(self._repo))) from error

    def _holds(self, now: Listing) -> bool:
        """Whether a commit has what is published."""
        return all(
            is_unchanged(content, now.files.get(path))
            for path, content in self._changes.files.items()
        ) and not any(path in now.files for path in self._changes.deleted)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client from drawing bars that nobody watches, or of nothing."""
    from huggingface_hub import utils as exported  # noqa: PLC0415 - an id was given

    utils: Any = exported  # it does not say that it exports these
    is_ours = not utils.are_progress_bars_disabled()
    is_ours = is_ours and not (sys.stderr.isatty() and _sends_by_xet())
    if is_ours:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if is_ours:
            utils.enable_progress_bars()


def _sends_by_xet() -> bool:
    """Whether the client sends large files by its newer protocol, with deadlines of its own."""
    from huggingface_hub import constants  # noqa: PLC0415 - an id was given

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def _watched(content: Path | bytes, renew: Callable[[], None]) -> Path | bytes | io.BufferedReader:
    """Something to send, which tells whenever a part of it is taken."""
    if isinstance(content, bytes) or _sends_by_xet():
        return content
    return _WatchedFile(content, renew)


class _WatchedFile(io.BufferedReader):
    """A file that tells whenever a part of it is read."""

    def __init__(self, path: Path, renew: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path))
        self._renew = renew

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on."""
        self._renew()
        return super().read(size)
