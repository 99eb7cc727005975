"""The Hugging Face Hub: ids, listings, what is downloaded, read in parts and uploaded."""

from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.calls import each
from rlsparse_store.hub.ids import RepoId, parse_repo_id
from rlsparse_store.hub.listing import HubFile, Listing, list_repo
from rlsparse_store.hub.ranges import RemoteFiles, read_small_file
from rlsparse_store.hub.snapshots import (
    CHECKPOINT_FILES,
    Snapshot,
    Wanted,
    cached_snapshot,
    cached_snapshots,
    fetch_snapshot,
)
from rlsparse_store.hub.uploads import (
    Commit,
    Published,
    create_branch,
    create_repo,
    is_unchanged,
    publish,
)

__all__ = [
    "CHECKPOINT_FILES",
    "Commit",
    "HubAccess",
    "HubFile",
    "Listing",
    "Published",
    "RemoteFiles",
    "RepoId",
    "Snapshot",
    "Wanted",
    "cached_snapshot",
    "cached_snapshots",
    "create_branch",
    "create_repo",
    "each",
    "fetch_snapshot",
    "is_unchanged",
    "list_repo",
    "parse_repo_id",
    "publish",
    "read_small_file",
]
