"""What a name means: a local path, a repository on the Hub, or the base of a delta."""

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
    from os import PathLike

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


def find_delta(
    delta: str | PathLike[str], revision: str | None, subfolder: str, access: HubAccess
) -> Path:
    """The local folder of a delta, which is downloaded if it is on the Hub.

    Args:
        delta: A local folder, or ``org/name[@revision]``.
        revision: The revision, if the id does not name one.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such delta.
    """
    inside = subfolder_parts(subfolder)
    repo = as_repo_id(delta, revision)
    if repo is None:
        return Path(delta, *inside)
    prefix = "".join(f"{part}/" for part in inside)
    wanted = [prefix + pattern for pattern in (f"{DELTA_FOLDER}/*", *CARRIED_FILES)]
    # A pattern's star also matches slashes: deltas in folders further down are left out.
    within = FileSelection("delta", wanted, [f"{prefix}*/{DELTA_FOLDER}/*"])
    return fetch_snapshot(repo, within, access).path.joinpath(*inside)


def find_run(repo: RepoId, access: HubAccess) -> dict[str, Path]:
    """Download the deltas of a run on the Hub; their local folders, by folder in the repository.

    Raises:
        NotFoundError: There are none.
    """
    snapshot = fetch_snapshot(repo, FileSelection("delta", [f"*/{DELTA_FOLDER}/*"]), access)
    return {folder: snapshot.path / folder for folder in _folders(snapshot.names)}


def delta_folders(listing: Listing) -> list[str]:
    """Folders of a repository that hold deltas; an empty string for the repository itself."""
    return _folders(listing.files)


def _folders(names: Iterable[str]) -> list[str]:
    # With a slash in front: another folder's name may end in the same letters.
    parts = (f"/{name}".partition(f"/{DELTA_FOLDER}/") for name in names)
    return sorted({folder[1:] for folder, inside, _ in parts if inside})


def read_delta(
    delta: str | PathLike[str], revision: str | None, subfolder: str, access: HubAccess
) -> DeltaReader:
    """Open a delta for its manifest and index. On the Hub, its chunks are not downloaded.

    Args:
        delta: A local folder, or ``org/name[@revision]``.
        revision: The revision, if the id does not name one.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such delta.
        FormatError: It is damaged.
    """
    repo = as_repo_id(delta, revision)
    if repo is None or access.is_offline:
        return DeltaReader(find_delta(delta, revision, subfolder, access))
    listing = list_repo(repo, "delta", access)
    return read_listed(listing, "/".join(subfolder_parts(subfolder)), access)


def read_listed(listing: Listing, folder: str, access: HubAccess) -> DeltaReader:
    """Open a delta of a listed repository for its manifest and index.

    Args:
        listing: The repository.
        folder: The delta's folder; empty for the repository itself.
        access: How to reach the Hub.

    Raises:
        NotFoundError: The folder holds no delta.
        FormatError: The delta is damaged.
    """
    found = delta_folders(listing)
    if folder not in found:
        msg = f"is not a delta: it has no {DELTA_FOLDER}/ folder"
        if found:
            msg += f"; there are deltas in {printable(', '.join(found))} (--subfolder)"
        raise NotFoundError(msg, file=printable(f"{listing.repo}/{folder}".rstrip("/")))
    inside = f"{folder}/{DELTA_FOLDER}" if folder else DELTA_FOLDER
    return DeltaReader(Path(str(listing.repo), folder), HubFolder(listing, inside, access))


def find_checkpoint(
    place: str | PathLike[str], what: str, access: HubAccess, revision: str | None = None
) -> Path:
    """The local path of a checkpoint to encode, which is downloaded if it is on the Hub.

    Every downloaded file is compared with the Hub's checksum: no delta exists yet whose digests
    would show damage.

    Args:
        place: A local folder or file, or ``org/name[@revision]``.
        what: What it is, for errors.
        access: How to reach the Hub.
        revision: The revision, if the id does not name one.

    Raises:
        NotFoundError: There is no such checkpoint.
        CheckpointError: It is a delta.
        ChecksumError: It is damaged.
    """
    repo = as_repo_id(place, revision)
    if repo is None:
        path = Path(place)
        if (path / DELTA_FOLDER).is_dir() and not any(path.glob("*.safetensors")):
            msg = f"is a delta, not a {what}; rebuild the checkpoint first (rlsparse apply)"
            raise CheckpointError(msg, file=printable(str(path)))
        return path
    return fetch_snapshot(repo, FileSelection(what, CHECKPOINT_FILES), access).path


def find_base(
    reader: DeltaReader,
    base: str | PathLike[str] | None,
    revision: str | None,
    access: HubAccess,
) -> Path:
    """The local path of a delta's base, which is downloaded if it is on the Hub.

    Args:
        reader: The delta.
        base: A local folder or file, or ``org/name[@revision]``; by default the base that the
            delta names.
        revision: The revision, if the id does not name one.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such base, or the delta names none and the cache has none with
            its content.
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
    """Download a base. Its content is compared with the delta's digests when it is read."""
    if repo.is_pinned and not access.is_offline:
        found = cached_snapshot(repo, "base", access)
        if found is not None and _is_whole(found.path):
            return found.path
    return fetch_snapshot(
        repo, FileSelection("base", CHECKPOINT_FILES, is_checked=False), access
    ).path


def _is_whole(path: Path) -> bool:
    """Whether the checkpoint has all of its files."""
    try:
        with open_checkpoint(path):
            return True
    except (CheckpointError, NotFoundError):
        return False


def subfolder_parts(subfolder: str) -> list[str]:
    """The parts of a subfolder's path.

    Raises:
        NotFoundError: It leads out of its repository.
    """
    parts = [part for part in subfolder.split("/") if part]
    if any(part in {".", ".."} or "\\" in part for part in parts):
        msg = "is not a subfolder: give plain names, separated by slashes"
        raise NotFoundError(msg, file=printable(subfolder))
    return parts


def as_repo_id(place: str | PathLike[str], revision: str | None = None) -> RepoId | None:
    """The repository that a name means, or ``None`` if it is a local path.

    A name whose first part exists here is a path, so that a mistyped path is never sent to the
    Hub. ``hf://`` in front makes it an id in any case.

    Args:
        place: A local folder or file, or ``org/name[@revision]``.
        revision: The revision, if the id does not name one.

    Raises:
        NotFoundError: A revision is given for a local path.
    """
    repo = parse_repo_id(place) if isinstance(place, str) else None
    is_path = repo is not None and not str(place).startswith("hf://") and _exists_here(repo)
    if repo is None or is_path:
        if revision is not None:
            msg = f"is a local path, which has no revision ({printable(revision)})"
            raise NotFoundError(msg, file=printable(str(place)))
        return None
    return RepoId(repo.repo, revision or repo.revision)


def _exists_here(repo: RepoId) -> bool:
    return Path(repo.repo.partition("/")[0]).exists()


def _recorded(reader: DeltaReader) -> BaseHint | None:
    """The repository and commit that the delta names."""
    manifest = reader.manifest
    if manifest.repo is None or manifest.revision is None or not parse_repo_id(manifest.repo):
        return None
    return BaseHint(manifest.repo, manifest.revision)


def _named_base(reader: DeltaReader, recorded: BaseHint | None, access: HubAccess) -> Path:
    """The base that the delta names, else a cached snapshot with the base's content."""
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
        "the delta does not name its base, and no cached snapshot has its content; give the base "
        "(--base BASE, or base=)"
    )
    raise NotFoundError(msg, file=reader.path)


def _is_base(reader: DeltaReader, path: Path) -> bool:
    """Whether a checkpoint has every source of the delta, with its content."""
    try:
        with open_checkpoint(path) as checkpoint:
            check_sources(reader, checkpoint)
            check_origins(reader, checkpoint, resolve_threads(None), every=True)
    except (CheckpointError, FormatError):
        return False
    return True
