"""Whether a place that an engine is given holds a delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.delta.resolve import as_repo_id, delta_folders
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.hub.listing import list_repo
from rlsparse_store.hub.snapshots import cached_snapshot

if TYPE_CHECKING:
    from rlsparse_store.hub.access import HubAccess

__all__ = ["is_delta"]


def is_delta(place: str, revision: str | None, subfolder: str, access: HubAccess) -> bool:
    """Whether a place holds a delta.

    Args:
        place: A local path, or ``org/name[@revision]``.
        revision: The revision, if the id does not name one.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such repository.
        HubError: The Hub does not answer.
    """
    if Path(place).is_dir():
        return Path(place, subfolder, DELTA_FOLDER).is_dir()
    repo = as_repo_id(place, revision)
    if repo is None:
        return False
    if access.is_offline:
        found = cached_snapshot(repo, "model", access)
        return found is not None and Path(found.path, subfolder, DELTA_FOLDER).is_dir()
    return subfolder in delta_folders(list_repo(repo, "model", access))
