"""Whether a place that an engine is given holds a delta, and which one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlsparse_store.delta.bucket_places import as_bucket_url, folders_at
from rlsparse_store.delta.resolve import as_repo_id, delta_folders, fetch_delta, find_delta
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.hub.listing import list_repo
from rlsparse_store.hub.snapshots import cached_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import Listing

__all__ = ["DetectedDelta", "detect_delta"]


class DetectedDelta(NamedTuple):
    """A delta in a place that an engine is given.

    Attributes:
        place: The place.
        revision: Its revision on the Hub, if the place does not name one.
        subfolder: The delta's folder in the place; empty for the place itself.
        listing: The repository on the Hub, if it was listed.
    """

    place: str
    revision: str | None
    subfolder: str
    listing: Listing | None = None

    def fetch(self, access: HubAccess) -> Path:
        """Its local folder. What is on the Hub or in a bucket is downloaded.

        Args:
            access: How to reach the Hub.

        Raises:
            RlsparseError: It cannot be downloaded.
        """
        if self.listing is not None:
            return fetch_delta(self.listing, self.subfolder, access)
        return find_delta(self.place, self.revision, self.subfolder, access)


def detect_delta(
    place: str, revision: str | None, subfolders: Sequence[str], access: HubAccess
) -> DetectedDelta | None:
    """Find a delta in a place; ``None`` if there is none.

    Args:
        place: A local path, ``org/name[@revision]``, or a URL in object storage.
        revision: The revision on the Hub, if the id does not name one.
        subfolders: Folders of the place that may hold the delta; the first that does is taken.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such repository, or nothing below the URL.
        HubError: The Hub does not answer.
        BucketError: The object storage failed.
    """
    listing = None
    if (url := as_bucket_url(place, revision, access)) is not None:
        found = folders_at(url)
    elif Path(place).is_dir():
        found = _among(Path(place), subfolders)
    elif (repo := as_repo_id(place, revision)) is None:
        return None
    elif access.is_offline:
        cached = cached_snapshot(repo, "model", access)
        found = [] if cached is None else _among(cached.path, subfolders)
    else:
        listing = list_repo(repo, "model", access)
        found = delta_folders(listing)
    subfolder = next((name for name in subfolders if name in found), None)
    return None if subfolder is None else DetectedDelta(place, revision, subfolder, listing)


def _among(folder: Path, subfolders: Sequence[str]) -> list[str]:
    return [name for name in subfolders if (folder / name / DELTA_FOLDER).is_dir()]
