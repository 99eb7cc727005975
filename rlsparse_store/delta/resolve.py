"""What a name means: a local path, a repository on the Hub, a URL, or the base of a delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.object_cache import is_cache_path
from rlsparse_store.delta.bucket_places import (
    as_bucket_url,
    fetch_checkpoint_at,
    fetch_delta_at,
    folders_with_deltas,
    open_checkpoint_at,
    read_delta_at,
)
from rlsparse_store.errors import CheckpointError, FormatError, HubOfflineError, NotFoundError
from rlsparse_store.files.checkpoint import open_checkpoint, open_files
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.hub_cache import BaseHint
from rlsparse_store.files.near_names import did_you_mean, near_path
from rlsparse_store.files.side_files import CARD, SIDE_FILES
from rlsparse_store.files.weight_files import choose_weight_files
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.remote_folder import HubFolder
from rlsparse_store.hub.repo_id import RepoId, id_of_page, parse_repo_id
from rlsparse_store.hub.selection import SIDES, CheckpointSelection, FileSelection
from rlsparse_store.hub.snapshots import (
    cached_snapshot,
    cached_snapshots,
    fetch_listed,
    fetch_snapshot,
)
from rlsparse_store.pipeline.chunk_decoder import check_sources
from rlsparse_store.pipeline.fingerprints import check_origins
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.buckets.bucket_url import BucketUrl
    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.hub.access import HubAccess

__all__ = [
    "as_repo_id",
    "delta_folders",
    "fetch_delta",
    "find_base",
    "find_checkpoint",
    "find_delta",
    "find_repo_id",
    "find_run",
    "open_base",
    "open_reader",
    "read_delta",
    "read_listed",
    "subfolder_parts",
]


_BASE_SIDES: Final = tuple(pattern for pattern in SIDES if pattern != CARD)


def find_delta(
    delta: str | PathLike[str], revision: str | None, subfolder: str, access: HubAccess
) -> Path:
    """The local folder of a delta, which is downloaded if it is on the Hub or in a bucket.

    Args:
        delta: A local folder, ``org/name[@revision]``, or a URL in object storage.
        revision: The revision, if the id does not name one.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such delta.
    """
    inside = subfolder_parts(subfolder)
    if (url := as_bucket_url(delta, revision, access)) is not None:
        return fetch_delta_at(_below(url, inside), _selection([]))
    repo = as_repo_id(delta, revision)
    if repo is None:
        return _existing(delta, *inside)
    if access.is_offline:
        return fetch_snapshot(repo, _selection(inside), access).path.joinpath(*inside)
    return fetch_delta(list_repo(repo, "delta", access), subfolder, access)


def _below(url: BucketUrl, inside: list[str]) -> BucketUrl:
    return url / "/".join(inside) if inside else url


def fetch_delta(listing: Listing, subfolder: str, access: HubAccess) -> Path:
    """Download a delta of a listed repository, as :func:`find_delta` does; its local folder.

    Raises:
        NotFoundError: There is no such delta.
    """
    inside = subfolder_parts(subfolder)
    _require_delta(listing, "/".join(inside))
    return fetch_listed(listing, _selection(inside), access).path.joinpath(*inside)


def _selection(inside: list[str]) -> FileSelection:
    """The files of the delta in a folder of a repository."""
    prefix = "".join(f"{part}/" for part in inside)
    wanted = [f"{prefix}{DELTA_FOLDER}/*", *(prefix + pattern for pattern in SIDE_FILES)]
    # A pattern's star also matches slashes: deltas in folders further down are left out.
    return FileSelection("delta", wanted, [f"{prefix}*/{DELTA_FOLDER}/*"])


def find_run(repo: RepoId, access: HubAccess) -> dict[str, Path]:
    """Download the deltas of a run on the Hub; their local folders, by folder in the repository.

    Raises:
        NotFoundError: There are none.
    """
    snapshot = fetch_snapshot(repo, FileSelection("delta", [f"*/{DELTA_FOLDER}/*"]), access)
    return {folder: snapshot.path / folder for folder in folders_with_deltas(snapshot.names)}


def delta_folders(listing: Listing) -> list[str]:
    """Folders of a repository that hold deltas; an empty string for the repository itself."""
    return folders_with_deltas(listing.files)


def open_reader(
    delta: str | PathLike[str],
    revision: str | None,
    subfolder: str,
    access: HubAccess,
    max_tuned_bytes: int | None,
) -> DeltaReader:
    """Open a delta whose chunks are read. From the Hub it is downloaded; from a bucket, parts are.

    Raises:
        NotFoundError: There is no such delta.
        FormatError: It is damaged.
        TooLargeError: Its tuned checkpoint has more than ``max_tuned_bytes``.
    """
    if (url := as_bucket_url(delta, revision, access)) is not None:
        return read_delta_at(_below(url, subfolder_parts(subfolder)), max_tuned_bytes)
    folder = find_delta(delta, revision, subfolder, access)
    return DeltaReader(folder, max_tuned_bytes=max_tuned_bytes)


def read_delta(
    delta: str | PathLike[str], revision: str | None, subfolder: str, access: HubAccess
) -> DeltaReader:
    """Open a delta for its manifest and index. Elsewhere, its chunks are not downloaded.

    Args:
        delta: A local folder, ``org/name[@revision]``, or a URL in object storage.
        revision: The revision, if the id does not name one.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such delta.
        FormatError: It is damaged.
    """
    if (url := as_bucket_url(delta, revision, access)) is not None:
        return read_delta_at(_below(url, subfolder_parts(subfolder)))
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
    _require_delta(listing, folder)
    inside = f"{folder}/{DELTA_FOLDER}" if folder else DELTA_FOLDER
    return DeltaReader(Path(str(listing.repo), folder), HubFolder(listing, inside, access))


def _require_delta(listing: Listing, folder: str) -> None:
    """Require that a folder of a repository holds a delta.

    Raises:
        NotFoundError: It does not; the folders that do are named.
    """
    found = delta_folders(listing)
    if folder not in found:
        msg = f"is not a delta: it has no {DELTA_FOLDER}/ folder"
        if found:
            where = printable(", ".join(name or "the repository itself" for name in found))
            msg += f"; there are deltas in {where} (--subfolder)"
        raise NotFoundError(msg, file=printable(f"{listing.repo.repo}/{folder}".rstrip("/")))


def find_checkpoint(
    place: str | PathLike[str], what: str, access: HubAccess, revision: str | None = None
) -> Path:
    """The local path of a checkpoint to encode, which is downloaded if it is elsewhere.

    Every file from the Hub is compared with the Hub's checksum: no delta exists yet whose digests
    would show damage.

    Args:
        place: A local folder or file, ``org/name[@revision]``, or a URL in object storage.
        what: What it is, for errors.
        access: How to reach the Hub.
        revision: The revision, if the id does not name one.

    Raises:
        NotFoundError: There is no such checkpoint.
        CheckpointError: It is a delta.
        ChecksumError: It is damaged.
    """
    url = as_bucket_url(place, revision, access)
    if url is not None:
        return fetch_checkpoint_at(url, what, () if what == "base" else SIDES)
    repo = as_repo_id(place, revision)
    if repo is None:
        path = _existing(place)
        if (path / DELTA_FOLDER).is_dir() and not any(path.glob("*.safetensors")):
            msg = f"is a delta, not a {what}; rebuild the checkpoint first (rlsparse apply)"
            raise CheckpointError(msg, file=printable(str(path)))
        return path
    # Of the base, only the weights are read.
    sides = () if what == "base" else SIDES
    return fetch_snapshot(repo, CheckpointSelection(what, sides), access).path


def find_base(
    reader: DeltaReader,
    base: str | PathLike[str] | None,
    revision: str | None,
    access: HubAccess,
) -> Path:
    """The local path of a delta's base, which is downloaded if it is elsewhere.

    Args:
        reader: The delta.
        base: A local folder or file, ``org/name[@revision]``, or a URL in object storage; by
            default the base that the delta names.
        revision: The revision, if the id does not name one.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such base, or the delta names none and the cache has none with
            its content.
    """
    recorded = _recorded(reader)
    if base is None:
        if is_cache_path(reader.path):
            return _base_of_bucket(reader, recorded, access)
        return _named_base(reader, recorded, access)
    if (url := as_bucket_url(base, revision, access)) is not None:
        return fetch_checkpoint_at(url, "base", _BASE_SIDES)
    repo = as_repo_id(base, revision)
    if repo is None:
        return _existing(base)
    if recorded and repo == RepoId(recorded.repo):
        return _named_base(reader, recorded, access)
    return _fetch_base(repo, access)


def open_base(
    reader: DeltaReader,
    base: str | PathLike[str] | None,
    revision: str | None,
    access: HubAccess,
) -> Checkpoint:
    """Open a delta's base, as :func:`find_base` finds it. From a bucket, only parts are read."""
    url = None if base is None else as_bucket_url(base, revision, access)
    if url is not None:
        return open_checkpoint_at(url)
    return open_checkpoint(find_base(reader, base, revision, access))


def _base_of_bucket(reader: DeltaReader, recorded: BaseHint | None, access: HubAccess) -> Path:
    """A cached snapshot with the base's content. A delta in a bucket never leads to the Hub.

    Raises:
        NotFoundError: There is none.
    """
    repo = recorded.repo if recorded else None
    for snapshot in cached_snapshots(access, repo):
        if snapshot.hints and snapshot.hints.repo == repo and _is_base(reader, snapshot.path):
            return snapshot.path
    named = "does not name its base"
    remedy = "--base BASE, or base="
    if recorded is not None:
        named = f"names {recorded.repo} at commit {recorded.revision} on the Hub as its base"
        remedy = f"--base {recorded.repo}@{recorded.revision}"
    msg = f"{named}, and a delta in a bucket leads to no other place; give the base ({remedy})"
    raise NotFoundError(printable(msg, 400), file=reader.path)


def _fetch_base(repo: RepoId, access: HubAccess) -> Path:
    """Download a base. Its content is compared with the delta's digests when it is read."""
    if repo.is_pinned and not access.is_offline:
        found = cached_snapshot(repo, "base", access)
        if found is not None and _is_whole(found.path):
            return found.path
    # The configuration, too, for a delta that was made of a state dict has none.
    wanted = CheckpointSelection("base", _BASE_SIDES, is_checked=False)
    return fetch_snapshot(repo, wanted, access).path


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

    A name whose first part exists here is a path, and one that is like an existing path is refused,
    so that a mistyped path is never sent to the Hub. ``hf://`` in front makes it an id in any case.

    Args:
        place: A local folder or file, or ``org/name[@revision]``.
        revision: The revision, if the id does not name one.

    Raises:
        NotFoundError: A revision is given for a local path, or the name is like one. Or it is a
            URL of object storage, which callers that take one recognize first: a server must not
            compare it with its folders.
    """
    if (url := parse_bucket_url(place)) is not None:
        msg = "is a URL of object storage, which is not taken here; give a folder or an id"
        raise NotFoundError(msg, file=url)
    repo = parse_repo_id(place) if isinstance(place, str) else None
    is_said = str(place).startswith("hf://")
    if repo is not None and not is_said and (near := near_path(str(place))):
        msg = f"no such path; did you mean {near}? For an id on the Hub write hf://{place}"
        raise NotFoundError(printable(msg, 400), file=printable(str(place)))
    is_path = repo is not None and not is_said and _exists_here(repo)
    if repo is None or is_path:
        if revision is not None:
            msg = f"is a local path, which has no revision ({printable(revision)})"
            raise NotFoundError(msg, file=printable(str(place)))
        return None
    return RepoId(repo.repo, revision or repo.revision)


def _refuse_address(place: str) -> None:
    """Refuse the address of a page, which is neither a path nor an id.

    Raises:
        NotFoundError: It is one.
    """
    scheme, found, rest = place.partition("://")
    page = id_of_page(place)
    if found and scheme == "file":
        msg = f"is the URL of a file here; give its path, {printable(rest)}"
    elif page is not None and (found or place.endswith("/") or place.count("/") > 1):
        found_id = printable(str(page))
        msg = f"no such file or folder; for the repository on the Hub write {found_id}"
    elif found:
        msg = (
            "is a URL that is not read; give a folder, ORG/NAME on the Hub, or s3://, gs://, az://"
        )
    else:
        return
    raise NotFoundError(msg, file=printable(place))


def find_repo_id(place: str | PathLike[str], revision: str | None = None) -> RepoId | None:
    """The repository that a name means; ``None`` for a local path, or a URL of object storage.

    Args:
        place: As for :func:`as_repo_id`, or a URL.
        revision: As for :func:`as_repo_id`.

    Raises:
        NotFoundError: As for :func:`as_repo_id`.
    """
    return None if parse_bucket_url(place) is not None else as_repo_id(place, revision)


def _existing(place: str | PathLike[str], *inside: str) -> Path:
    """A local path, unless it does not exist and another one like it does, or it is an address.

    Raises:
        NotFoundError: Its message names what was probably meant.
    """
    path = Path(place, *inside)
    if path.exists():
        return path
    if near := did_you_mean(path):
        msg = f"no such file or folder{near}"
        raise NotFoundError(msg, file=printable(str(path)))
    _refuse_address(str(place))
    return path


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
        except HubOfflineError as error:
            missing = error
        except NotFoundError as error:
            missing = error
            if (found := _moved_base(reader, RepoId(recorded.repo), access)) is not None:
                return found
    for snapshot in cached_snapshots(access, recorded.repo if recorded else None):
        if _is_base(reader, snapshot.path):
            return snapshot.path
    if missing is not None:
        raise missing
    msg = (
        "the delta does not name its base, and no cached snapshot has the content; give the base "
        "(--base BASE, or base=)"
    )
    raise NotFoundError(msg, file=reader.path)


def _moved_base(reader: DeltaReader, repo: RepoId, access: HubAccess) -> Path | None:
    """The base at the default branch, if the headers there are the base's.

    A squashed history has lost the commit that a delta names, and not its content, which is
    compared with the delta's digests when it is read.
    """
    try:
        listing = list_repo(repo, "base", access)
        folder, place = HubFolder(listing, "", access), Path(str(listing.repo))
        weights = choose_weight_files(folder, place)
        if weights is None:
            return None
        with open_files(place, folder, weights) as base:
            check_sources(reader, base)
    except (NotFoundError, CheckpointError, FormatError):
        return None
    return _fetch_base(listing.repo, access)


def _is_base(reader: DeltaReader, path: Path) -> bool:
    """Whether a checkpoint has every source of the delta, with its content."""
    try:
        with open_checkpoint(path) as checkpoint:
            check_sources(reader, checkpoint)
            check_origins(reader, checkpoint, resolve_threads(None), include_covered=True)
    except (CheckpointError, FormatError):
        return False
    return True
