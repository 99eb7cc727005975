"""Finding what a name means: a local folder, a repository on the Hub, or the base of a delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.errors import CheckpointError, FormatError, NotFoundError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.hub_cache import BaseHint
from rlsparse_store.files.side_files import CARRIED_FILES
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.remote_folder import HubFolder
from rlsparse_store.hub.repo_id import RepoId, parse_repo_id
from rlsparse_store.hub.snapshots import (
    CHECKPOINT_FILES,
    FileSelection,
    cached_snapshot,
    cached_snapshots,
    fetch_snapshot,
)
from rlsparse_store.pipeline.chunk_decoder import check_sources
from rlsparse_store.pipeline.fingerprints import check_origins
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlsparse_store.hub.access import HubAccess

__all__ = [
    "as_repo_id",
    "delta_folders",
    "find_base",
    "find_checkpoint",
    "find_delta",
    "find_run",
    "read_delta",
    "read_listed",
    "subfolder_parts",
]


def find_delta(delta: str | Path, revision: str | None, subfolder: str, access: HubAccess) -> Path:
    """The folder of a delta, downloaded if it is not here.

    Args:
        delta: A local folder, or ``org/name[@revision]``.
        revision: The revision, if it is not part of the id.
        subfolder: The folder within, of a repository or folder with several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: It is not there.
    """
    inside = subfolder_parts(subfolder)
    repo = as_repo_id(delta, revision)
    if repo is None:
        return Path(delta, *inside)
    prefix = "".join(f"{part}/" for part in inside)
    wanted = [prefix + pattern for pattern in (f"{DELTA_FOLDER}/*", *CARRIED_FILES)]
    # A pattern's star also stands for slashes: the deltas in folders further down are left out.
    within = FileSelection("delta", wanted, [f"{prefix}*/{DELTA_FOLDER}/*"])
    return fetch_snapshot(repo, within, access).path.joinpath(*inside)


def find_run(repo: RepoId, access: HubAccess) -> dict[str, Path]:
    """The deltas of a run on the Hub, by their folders; downloaded if they are not here.

    Raises:
        NotFoundError: There are none.
    """
    snapshot = fetch_snapshot(repo, FileSelection("delta", [f"*/{DELTA_FOLDER}/*"]), access)
    return {folder: snapshot.path / folder for folder in _folders(snapshot.names)}


def delta_folders(listing: Listing) -> list[str]:
    """Where a repository has deltas: folders within, an empty text for the repository itself."""
    return _folders(listing.files)


def _folders(names: Iterable[str]) -> list[str]:
    # A slash goes before, for a folder's name may end like that of a delta's.
    parts = (f"/{name}".partition(f"/{DELTA_FOLDER}/") for name in names)
    return sorted({folder[1:] for folder, inside, _ in parts if inside})


def read_delta(delta: str | Path, subfolder: str, access: HubAccess) -> DeltaReader:
    """Open a delta whose chunks are not needed: on the Hub, only the rest of it is read.

    Args:
        delta: A local folder, or ``org/name[@revision]``.
        subfolder: The folder within, of a repository or folder with several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: It is not there.
        FormatError: It is damaged.
    """
    repo = as_repo_id(delta)
    if repo is None or access.is_offline:
        return DeltaReader(find_delta(delta, None, subfolder, access))
    listing = list_repo(repo, "delta", access)
    return read_listed(listing, "/".join(subfolder_parts(subfolder)), access)


def read_listed(listing: Listing, folder: str, access: HubAccess) -> DeltaReader:
    """Open a delta of a repository that was listed, without its chunks.

    Args:
        listing: The repository.
        folder: The folder within; empty for the repository itself.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is none.
        FormatError: It is damaged.
    """
    found = delta_folders(listing)
    if folder not in found:
        msg = f"there is no {DELTA_FOLDER}/ folder, so it is no delta"
        if found:
            msg += f"; there are deltas in {printable(', '.join(found))} (--subfolder)"
        raise NotFoundError(msg, file=printable(f"{listing.repo}/{folder}".rstrip("/")))
    inside = f"{folder}/{DELTA_FOLDER}" if folder else DELTA_FOLDER
    return DeltaReader(Path(str(listing.repo), folder), HubFolder(listing, inside, access))


def find_checkpoint(place: str | Path, what: str, access: HubAccess) -> Path:
    """Where a checkpoint lies that is to be encoded, downloaded if it is not here.

    All of it is compared with the Hub's ids, for there is no delta yet whose digests would tell.

    Args:
        place: A local folder or file, or ``org/name[@revision]``.
        what: What it is, for errors.
        access: How to reach the Hub.

    Raises:
        NotFoundError: It is not there.
        CheckpointError: It is a delta.
        ChecksumError: It is damaged.
    """
    repo = as_repo_id(place)
    if repo is None:
        path = Path(place)
        if (path / DELTA_FOLDER).is_dir() and not any(path.glob("*.safetensors")):
            msg = f"is a delta and no {what}: rebuild the checkpoint first (rlsparse apply)"
            raise CheckpointError(msg, file=printable(str(path)))
        return path
    return fetch_snapshot(repo, FileSelection(what, CHECKPOINT_FILES), access).path


def find_base(
    reader: DeltaReader, base: str | Path | None, revision: str | None, access: HubAccess
) -> Path:
    """Where the base of a delta lies, downloaded if it is not here.

    Args:
        reader: The delta.
        base: A local folder or file, or ``org/name[@revision]``; by default what the delta names.
        revision: The revision, if it is not part of the id.
        access: How to reach the Hub.

    Raises:
        NotFoundError: It is not there, or the delta names none and none was found.
    """
    recorded = _recorded(reader)
    if base is None:
        return _named_base(reader, recorded, access)
    repo = as_repo_id(base, revision)
    if repo is None:
        return Path(base)
    if recorded and repo == RepoId(recorded.repo):
        return _named_base(reader, recorded, access)
    return _fetch_base(repo, access)


def _fetch_base(repo: RepoId, access: HubAccess) -> Path:
    """A base, whose content is compared with the delta's digests while it is read."""
    if repo.is_pinned and not access.is_offline:
        found = cached_snapshot(repo, "base", access)
        if found is not None and _is_whole(found.path):
            return found.path
    return fetch_snapshot(
        repo, FileSelection("base", CHECKPOINT_FILES, is_checked=False), access
    ).path


def _is_whole(path: Path) -> bool:
    """Whether every file is there that the checkpoint says it has."""
    try:
        with open_checkpoint(path):
            return True
    except (CheckpointError, NotFoundError):
        return False


def subfolder_parts(subfolder: str) -> list[str]:
    """The names that a subfolder is made of.

    Raises:
        NotFoundError: It would lead elsewhere.
    """
    parts = [part for part in subfolder.split("/") if part]
    if any(part in {".", ".."} or "\\" in part for part in parts):
        msg = "a subfolder lies within its repository: give plain names between slashes"
        raise NotFoundError(msg, file=printable(subfolder))
    return parts


def as_repo_id(place: str | Path, revision: str | None = None) -> RepoId | None:
    """The repository that a name means, unless it is something local.

    Args:
        place: A local folder or file, or ``org/name[@revision]``.
        revision: The revision, if it is not part of the id.

    Raises:
        NotFoundError: A revision of something local.
    """
    local = Path(place)
    repo = parse_repo_id(place) if isinstance(place, str) and not local.exists() else None
    if repo is None:
        if revision is not None:
            msg = f"a revision, {printable(revision)}, of a local folder; give org/name"
            raise NotFoundError(msg, file=printable(str(place)))
        return None
    return RepoId(repo.repo, revision or repo.revision)


def _recorded(reader: DeltaReader) -> BaseHint | None:
    """The repository and commit that the delta names."""
    manifest = reader.manifest
    if manifest.repo is None or manifest.revision is None or not parse_repo_id(manifest.repo):
        return None
    return BaseHint(manifest.repo, manifest.revision)


def _named_base(reader: DeltaReader, recorded: BaseHint | None, access: HubAccess) -> Path:
    """The base that the delta names, else a snapshot in the cache with its content."""
    missing: NotFoundError | None = None
    if recorded is not None:
        try:
            return _fetch_base(RepoId(recorded.repo, recorded.revision), access)
        except NotFoundError as error:
            missing = error
    for snapshot in cached_snapshots(access, recorded.repo if recorded else None):
        if _is_base(reader, snapshot.path):
            return snapshot.path
    if missing is not None:
        raise missing
    msg = (
        "the delta does not name its base, and none in the cache has its content: give the base "
        "(--base BASE, or from_delta(base, delta))"
    )
    raise NotFoundError(msg, file=reader.path)


def _is_base(reader: DeltaReader, path: Path) -> bool:
    """Whether a checkpoint has all that the delta's tensors come from."""
    try:
        with open_checkpoint(path) as checkpoint:
            check_sources(reader, checkpoint)
            check_origins(reader, checkpoint, resolve_threads(None), every=True)
    except (CheckpointError, FormatError):
        return False
    return True
