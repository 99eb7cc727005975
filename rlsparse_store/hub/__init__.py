"""The Hugging Face Hub: repository ids, and the folders that their files are downloaded to."""

from rlsparse_store.hub.ids import RepoId, parse_repo_id
from rlsparse_store.hub.snapshots import (
    CHECKPOINT_FILES,
    HubAccess,
    Snapshot,
    cached_snapshots,
    fetch_snapshot,
)

__all__ = [
    "CHECKPOINT_FILES",
    "HubAccess",
    "RepoId",
    "Snapshot",
    "cached_snapshots",
    "fetch_snapshot",
    "parse_repo_id",
]
