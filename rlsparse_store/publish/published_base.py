"""The base on the Hub: its repository, commit and card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.errors import BaseMismatchError, HubOfflineError, NotFoundError
from rlsparse_store.files.checkpoint import open_files
from rlsparse_store.files.weight_files import choose_weight_files
from rlsparse_store.format.names import printable
from rlsparse_store.hub.listing import list_repo
from rlsparse_store.hub.remote_folder import HubFolder
from rlsparse_store.hub.repo_id import RepoId, parse_repo_id
from rlsparse_store.pipeline.chunk_decoder import check_sources
from rlsparse_store.pipeline.fingerprints import check_small_origins

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.files.delta_reader import DeltaReader
    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import Listing

__all__ = ["PublishedBase", "find_published_base", "recorded_base", "require_base"]

SAMPLE: Final = 4
"""Tensors of a base to read, to tell it from others of the same architecture."""

SAMPLE_BYTES: Final = 2 << 20
"""Largest tensor to read, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedBase:
    """A base on the Hub.

    Attributes:
        repo: Its repository and commit.
        listing: Its files; ``None`` if the repository is not visible.
    """

    repo: RepoId
    listing: Listing | None

    @property
    def is_public(self) -> bool:
        """Whether the repository is public."""
        return self.listing is not None and not self.listing.is_private

    @property
    def card(self) -> dict[str, Any]:
        """The front matter of its card."""
        return {} if self.listing is None else self.listing.card


def recorded_base(reports: Iterable[DeltaReport], place: Path) -> RepoId:
    """The repository and commit that deltas name as their base.

    Args:
        reports: Their reports.
        place: Their folder, for errors.

    Raises:
        NotFoundError: A delta names none.
        BaseMismatchError: They name different ones.
    """
    found: set[RepoId] = set()
    for report in reports:
        if not report.base_repo or not report.base_revision or not parse_repo_id(report.base_repo):
            msg = (
                "the delta does not name its base on the Hub, and readers could not find it: give "
                "--base-id ORG/BASE@COMMIT"
            )
            raise NotFoundError(msg, file=printable(str(place)))
        found.add(RepoId(report.base_repo, report.base_revision))
    if len(found) != 1:
        msg = "the deltas name different bases: publish them in different repositories"
        raise BaseMismatchError(msg, file=printable(str(place)))
    return found.pop()


def find_published_base(repo: RepoId, access: HubAccess, *, must_exist: bool) -> PublishedBase:
    """Find a base on the Hub and pin its revision.

    Args:
        repo: The repository and its revision.
        access: How to reach the Hub.
        must_exist: Whether a base that is not visible is an error.

    Raises:
        NotFoundError: It does not exist or is not visible.
    """
    try:
        listing = list_repo(repo, "base", access)
    except HubOfflineError:
        raise
    except NotFoundError:
        if must_exist or not repo.is_pinned:
            raise
        return PublishedBase(repo=repo, listing=None)
    return PublishedBase(repo=listing.repo, listing=listing)


def require_base(reader: DeltaReader, listing: Listing, access: HubAccess) -> None:
    """Check that a repository is the base of a delta, without downloading it.

    Compares dtype and length of every tensor by the headers of the files, and the digests of a few
    small tensors. Loading the delta compares everything.

    Raises:
        NotFoundError: The repository has no safetensors files.
        BaseMismatchError: It is another base.
    """
    place = Path(str(listing.repo))
    folder = HubFolder(listing, "", access)
    weights = choose_weight_files(folder, place)
    if weights is None:
        msg = "has no safetensors weights, so it is not the base"
        raise NotFoundError(msg, file=printable(str(place)))
    with open_files(place, folder, weights) as base:
        check_sources(reader, base)
        check_small_origins(reader, base, SAMPLE, SAMPLE_BYTES)
