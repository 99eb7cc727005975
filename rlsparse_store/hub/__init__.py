"""The Hugging Face Hub: ids, listings, what is downloaded, read in parts and uploaded."""

from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.ids import RepoId, parse_repo_id
from rlsparse_store.hub.listing import HubFile, Listing, list_repo
from rlsparse_store.hub.ranges import RemoteFiles
from rlsparse_store.hub.snapshots import (
    CHECKPOINT_FILES,
    Snapshot,
    Wanted,
    cached_snapshot,
    cached_snapshots,
    fetch_snapshot,
)

__all__ = [
    "CHECKPOINT_FILES",
    "HubAccess",
    "HubFile",
    "Listing",
    "RemoteFiles",
    "RepoId",
    "Snapshot",
    "Wanted",
    "cached_snapshot",
    "cached_snapshots",
    "fetch_snapshot",
    "list_repo",
    "parse_repo_id",
]
