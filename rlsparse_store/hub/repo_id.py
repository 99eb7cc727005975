"""Repository ids: ``org/name``, optionally followed by ``@`` and a revision."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["RepoId", "id_of_page", "parse_repo_id"]

_ID: Final = re.compile(
    r"(?:hf://(?!buckets/))?([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?",
    re.ASCII,
)

_PAGE: Final = re.compile(
    r"(?:(?:https?://[^/]+|huggingface\.co|hf\.co|hf:)/+)?(?:models/)?"
    r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:/(?:tree|blob|resolve|commit)/([^/?#]+)[^?#]*)?/*(?:[?#].*)?",
    re.ASCII,
)
"""The address of a repository's page, or of one of its files."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class RepoId(NamedTuple):
    """A repository on the Hub.

    Attributes:
        repo: ``org/name``.
        revision: A commit, branch or tag; ``None`` for the default branch.
    """

    repo: str
    revision: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit hash, which never moves."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_repo_id(text: str) -> RepoId | None:
    """Parse ``[hf://]org/name[@revision]``; return ``None`` if the text is not an id.

    ``hf://buckets/`` begins the URL of a bucket.

    Example:
        >>> parse_repo_id("hf://org/name@main")
        RepoId(repo='org/name', revision='main')
        >>> parse_repo_id("./folder")
    """
    found = _ID.fullmatch(text)
    return RepoId(found[1], found[2]) if found else None


def id_of_page(text: str) -> RepoId | None:
    """The repository of a page on the Hub, by its address; ``None`` if the text is none.

    Example:
        >>> str(id_of_page("https://huggingface.co/org/name/tree/main"))
        'org/name@main'
        >>> id_of_page("./folder")
    """
    found = _PAGE.fullmatch(text)
    return RepoId(found[1], found[2]) if found else None
