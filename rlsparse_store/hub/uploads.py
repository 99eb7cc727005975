"""Publishing files: large files first, then one atomic commit."""

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

SMALL_FILE: Final = 1 << 20
"""Bytes of the largest file that is uploaded together with others."""

BATCH_FILES: Final = 64
"""Files that are uploaded together."""

WHAT: Final = "delta"
"""What the requests are for, in error messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The changes of a commit.

    Attributes:
        files: New contents by path in the repository: local files or bytes.
        deleted: Paths of files to delete.
        message: Commit message, one line.
    """

    files: Mapping[str, Path | bytes]
    deleted: list[str]
    message: str


class Published(NamedTuple):
    """A published commit.

    Attributes:
        commit: Commit hash.
        url: Page of the commit or of the pull request.
    """

    commit: str
    url: str


def create_repo(repo: RepoId, *, private: bool | None, access: HubAccess) -> None:
    """Create a repository if it does not exist.

    Args:
        repo: The repository.
        private: Whether the repository is private; defaults to the owner's setting.
        access: How to reach the Hub.

    Raises:
        HubError: The Hub failed or refused.
    """
    api = access.api()
    retry(
        lambda: api.create_repo(repo.repo, private=private, exist_ok=True),
        WHAT,
        RepoId(repo.repo),
        Deadline(access.timeout),
    )


def create_branch(head: RepoId, branch: str, access: HubAccess) -> None:
    """Create a branch if it does not exist.

    Args:
        head: The repository, with the branch's first commit as revision.
        branch: Name of the branch.
        access: How to reach the Hub.

    Raises:
        HubError: The Hub failed or refused.
    """
    api = access.api()
    retry(
        lambda: api.create_branch(head.repo, branch=branch, revision=head.revision, exist_ok=True),
        WHAT,
        RepoId(head.repo, branch),
        Deadline(access.timeout),
    )


def is_unchanged(content: Path | bytes, published: HubFile | None) -> bool:
    """Return whether a published file has this content."""
    if published is None or not published.content:
        return False
    return (
        _nbytes(content) == published.nbytes
        and content_id(content, published.content) == published.content
    )


def _nbytes(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _batches(files: Mapping[str, Path | bytes]) -> list[list[tuple[str, Path | bytes]]]:
    """Files to upload together: a large one alone, small ones with others.

    The Hub answers for a batch at once. A run has thousands of small files, and a request for each
    takes longer than their bytes.
    """
    sizes = {path: _nbytes(content) for path, content in files.items()}
    small = [item for item in files.items() if sizes[item[0]] <= SMALL_FILE]
    large = [[item] for item in files.items() if sizes[item[0]] > SMALL_FILE]
    return [*large, *(small[k : k + BATCH_FILES] for k in range(0, len(small), BATCH_FILES))]


def publish(
    head: Listing, branch: str | None, changes: Commit, access: HubAccess, *, create_pr: bool
) -> Published:
    """Upload files and create one commit with them on top of the listed one.

    The Hub stores large files by content: after a failure, a second call does not send the uploaded
    ones again.

    Args:
        head: The current state of the branch.
        branch: Name of the branch; ``None`` for the default branch.
        changes: The changes of the commit.
        access: How to reach the Hub.
        create_pr: Whether to open a pull request instead of committing to the branch.

    Raises:
        MovedBranchError: Someone else wrote to the branch.
        HubError: The Hub failed or refused.
    """
    return _Publisher(head, branch, changes, access, create_pr=create_pr).publish()


class _Publisher:
    """Publishes one commit."""

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
        with _no_progress_bars():
            uploaded = map_concurrently(self._upload, _batches(self._changes.files))
            additions = [addition for batch in uploaded for addition in batch]
            published = self._commit(additions)
        for addition in additions:
            _close(addition.path_or_fileobj)
        commit = RepoId(self._repo.repo, published.commit)
        if not self._is_applied(list_repo(commit, WHAT, self._access)):
            msg = (
                f"commit {published.commit} does not hold the files that were sent: review it and "
                "push again"
            )
            raise HubServerError(msg, file=printable(str(self._repo)))
        return published

    def _upload(self, batch: list[tuple[str, Path | bytes]]) -> list[Any]:
        """Upload those files of a batch that the Hub stores apart from commits."""
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - only for repository ids

        nbytes = sum(_nbytes(content) for _, content in batch)
        # A batch of small files would take as many open files.
        has_progress = len(batch) == 1 and not _uses_xet()
        deadline = transfer_deadline(self._access, nbytes, reports_progress=has_progress)

        def send() -> list[Any]:
            contents = [
                _with_progress(content, deadline.renew) if has_progress else content
                for _, content in batch
            ]
            # New operations for each attempt: the client stores its progress in them.
            additions = [
                CommitOperationAdd(path, content)
                for (path, _), content in zip(batch, contents, strict=True)
            ]
            self._api.preupload_lfs_files(
                self._repo.repo,
                additions,
                revision=self._repo.revision,
                create_pr=self._create_pr,
                # The client forgets a file that it has uploaded.
                free_memory=True,
                gitignore_content="",
            )
            for content, addition in zip(contents, additions, strict=True):
                if addition.path_or_fileobj is not content:
                    _close(content)
            return additions

        return retry(send, WHAT, self._repo, deadline)

    def _commit(self, additions: list[Any]) -> Published:
        """Create the commit exactly once, even if a response is lost."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._commit_once(additions)
            except (HubServerError, HubTimeoutError, HubOfflineError) as error:
                published = self._find_commit(error)
                if published is not None:
                    return published
                if attempt == ATTEMPTS:
                    raise
            except MovedBranchError as error:
                # The branch may have been moved by an earlier attempt.
                published = self._find_commit(error) if attempt > 1 else None
                if published is None:
                    raise
                return published
            time.sleep(2.0 ** (attempt - 1))
        raise AssertionError

    def _commit_once(self, additions: list[Any]) -> Published:
        from huggingface_hub import CommitOperationDelete  # noqa: PLC0415 - only for repository ids

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

        # The commit request itself carries the small files.
        small = (_nbytes(content) for content in self._changes.files.values())
        sent = sum(nbytes for nbytes in small if nbytes <= SMALL_FILE)
        deadline = transfer_deadline(self._access, sent, reports_progress=False)
        return call(commit, WHAT, self._repo, deadline)

    def _find_commit(self, error: RlsparseError) -> Published | None:
        """Return the commit if only its response was lost; ``None`` if it was not created.

        Raises:
            MovedBranchError: Someone else wrote to the branch.
        """
        if self._create_pr:
            msg = (
                "the response was lost and the pull request may exist: look at the repository's "
                "pull requests before pushing again"
            )
            raise HubServerError(msg, file=printable(str(self._repo))) from error
        branch = list_repo(self._repo, WHAT, self._access)
        if branch.repo.revision == self._parent:
            return None
        if self._is_applied(branch):
            commit = str(branch.repo.revision)
            return Published(commit, f"{self._api.endpoint}/{self._repo.repo}/commit/{commit}")
        msg = "someone else wrote to the branch: review the branch and push again"
        raise MovedBranchError(msg, file=printable(str(self._repo))) from error

    def _is_applied(self, listing: Listing) -> bool:
        """Return whether a commit holds the changes."""
        return all(
            is_unchanged(content, listing.files.get(path))
            for path, content in self._changes.files.items()
        ) and not any(path in listing.files for path in self._changes.deleted)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disable the client's progress bars, except for Xet transfers on a terminal."""
    from huggingface_hub import utils as exported  # noqa: PLC0415 - only for repository ids

    utils: Any = exported  # the functions below are not in its __all__
    disables = not utils.are_progress_bars_disabled()
    disables = disables and not (sys.stderr.isatty() and _uses_xet())
    if disables:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if disables:
            utils.enable_progress_bars()


def _uses_xet() -> bool:
    """Return whether the client transfers large files by Xet, which has its own timeouts."""
    from huggingface_hub import constants  # noqa: PLC0415 - only for repository ids

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


def _with_progress(content: Path | bytes, renew: Callable[[], None]) -> bytes | _ProgressFile:
    """Return content that calls ``renew`` while the client reads it."""
    return content if isinstance(content, bytes) else _ProgressFile(content, renew)


def _close(content: object) -> None:
    if isinstance(content, _ProgressFile):
        content.close()


class _ProgressFile(io.BufferedReader):
    """A file that calls ``renew`` at each read."""

    def __init__(self, path: Path, renew: Callable[[], None]) -> None:
        super().__init__(io.FileIO(path))
        self._renew = renew

    def read(self, size: int | None = -1, /) -> bytes:
        """Read the next bytes."""
        self._renew()
        return super().read(size)
