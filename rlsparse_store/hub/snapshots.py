"""Snapshots of repositories: downloaded and verified, or found in the cache."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlsparse_store.errors import ChecksumError, NotFoundError
from rlsparse_store.files.folder import LocalFolder
from rlsparse_store.files.hub_cache import BaseHint, base_hint_from_path
from rlsparse_store.format.names import printable
from rlsparse_store.hub.calls import Deadline, call, map_concurrently, retry, transfer_deadline
from rlsparse_store.hub.errors import not_cached
from rlsparse_store.hub.listing import HubFile, Listing, content_id, list_repo
from rlsparse_store.hub.remote_folder import HubFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.repo_id import RepoId
    from rlsparse_store.hub.selection import Selection

__all__ = [
    "Snapshot",
    "cached_snapshot",
    "cached_snapshots",
    "fetch_listed",
    "fetch_snapshot",
]

log = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """A commit in the cache.

    Attributes:
        path: Folder of the snapshot.
        hints: Repository and commit, from the names of the cache's folders.
        names: Files that were selected and fetched; empty for a snapshot found in the cache.
    """

    path: Path
    hints: BaseHint | None
    names: Sequence[str] = ()


def fetch_snapshot(repo: RepoId, selection: Selection, access: HubAccess) -> Snapshot:
    """Download the selected files that are not in the cache.

    Args:
        repo: The repository and its revision.
        selection: The files.
        access: How to reach the Hub.

    Raises:
        NotFoundError: The repository or revision does not exist, is gated, has none of the files,
            or is not in the cache while offline.
        ChecksumError: A file does not match the Hub's checksum.
        HubError: The Hub failed.
    """
    if access.is_offline:
        return _find_offline(repo, selection, access)
    return fetch_listed(list_repo(repo, selection.what, access), selection, access)


def fetch_listed(listing: Listing, selection: Selection, access: HubAccess) -> Snapshot:
    """Download the selected files of a listed repository, as :func:`fetch_snapshot` does."""
    folder = HubFolder(listing, "", access)
    names = selection.among(listing.files, folder, Path(listing.repo.repo))
    downloads = [_Download(listing, name, selection, access) for name in names]
    missing = [download for download in downloads if not download.is_cached]
    if missing:
        nbytes = sum(listing.files[download.name].nbytes for download in missing)
        log.info(
            "fetching %d of %d files of the %s, %s MB, from %s",
            *(len(missing), len(names), selection.what, f"{nbytes / 1e6:,.1f}"),
            printable(str(listing.repo)),
        )
    paths = map_concurrently(_Download.fetch, downloads)
    path = paths[0].parents[names[0].count("/")]
    return Snapshot(path, base_hint_from_path(path), names)


def _find_offline(repo: RepoId, selection: Selection, access: HubAccess) -> Snapshot:
    snapshot = cached_snapshot(repo, selection.what, access)
    if snapshot is None:
        raise not_cached(selection.what, printable(str(repo)))
    folder = snapshot.path
    cached = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    names = selection.among(cached, LocalFolder(folder), Path(repo.repo))
    if selection.is_checked:
        for name in names:
            _check_cached(folder / name, name, repo)
    return snapshot._replace(names=names)


def _check_cached(path: Path, name: str, repo: RepoId) -> None:
    """Compare a cached file with its content id, the name of the blob that it links to."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) in {40, 64} and content_id(path, blob) != blob:
        msg = (
            f"{printable(name)} is damaged in the cache: run `hf cache verify {repo.repo}`, or "
            "delete the file from the cache and download it again"
        )
        raise ChecksumError(msg, file=printable(str(repo)))


def cached_snapshot(repo: RepoId, what: str, access: HubAccess) -> Snapshot | None:
    """Return the cached snapshot of a revision, if any. It may lack files.

    Raises:
        HubError: The client failed.
    """
    import huggingface_hub  # noqa: PLC0415 - only for repository ids

    def find() -> str:
        return huggingface_hub.snapshot_download(
            repo.repo, revision=repo.revision, cache_dir=access.cache, local_files_only=True
        )

    try:
        path = Path(call(find, what, repo, Deadline(access.timeout)))
    except NotFoundError:
        return _latest_snapshot(repo, access) if repo.revision is None else None
    return Snapshot(path, base_hint_from_path(path))


def _latest_snapshot(repo: RepoId, access: HubAccess) -> Snapshot | None:
    """Return the last snapshot in the cache: downloads by commit leave no branch reference."""
    found = [
        snapshot
        for snapshot in cached_snapshots(access, repo.repo)
        if snapshot.hints and snapshot.hints.repo == repo.repo
    ]
    return max(found, key=lambda snapshot: snapshot.path.stat().st_mtime_ns, default=None)


class _Download:
    """Downloads one file into the cache."""

    def __init__(
        self, listing: Listing, name: str, selection: Selection, access: HubAccess
    ) -> None:
        self._repo = listing.repo
        self._file: HubFile = listing.files[name]
        self.name = name
        self._selection = selection
        self._access = access
        self._cached = self._find()

    def _find(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only for repository ids

        cached = try_to_load_from_cache(
            self._repo.repo,
            self.name,
            cache_dir=self._access.cache,
            revision=self._repo.revision,
        )
        return Path(cached) if isinstance(cached, str) else None

    @property
    def is_cached(self) -> bool:
        """Whether the file is in the cache, intact or not."""
        return self._cached is not None

    def fetch(self) -> Path:
        """Return the path of the file in the cache. A damaged file is downloaded again."""
        if self._cached is not None:
            path = self._cached
            if not self._selection.is_checked or self._is_intact(path):
                return path
        else:
            path = self._download(force=False)
            if self._is_intact(path):
                return path
        path = self._download(force=True)
        if not self._is_intact(path):
            msg = (
                f"{printable(self.name)}: two downloads did not match the Hub's checksum; try "
                "again later"
            )
            raise ChecksumError(msg, file=printable(str(self._repo)))
        return path

    def _is_intact(self, path: Path) -> bool:
        if path.stat().st_size != self._file.nbytes:
            return False
        return not self._file.content or (
            content_id(path, self._file.content) == self._file.content
        )

    def _download(self, *, force: bool) -> Path:
        import huggingface_hub  # noqa: PLC0415 - only for repository ids

        deadline = transfer_deadline(self._access, self._file.nbytes, reports_progress=True)

        def download() -> str:
            return huggingface_hub.hf_hub_download(
                self._repo.repo,
                self.name,
                revision=self._repo.revision,
                cache_dir=self._access.cache,
                token=self._access.token,
                force_download=force,
                library_name="rlsparse-store",
                tqdm_class=_progress_bar(deadline.renew),
            )

        return Path(retry(download, self._selection.what, self._repo, deadline))


def _progress_bar(renew: Callable[[], None]) -> type[Any]:
    """Return the client's progress bar, shown only on a terminal, that calls ``renew`` on data."""
    from huggingface_hub import utils  # noqa: PLC0415 - only for repository ids

    bar: Any = getattr(utils, "tqdm")  # noqa: B009 - the client exports it without types

    class ProgressBar(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
            kwargs["disable"] = bool(kwargs.get("disable")) or not sys.stderr.isatty()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            renew()
            is_displayed: bool | None = super().update(n)
            return is_displayed

    return ProgressBar


def cached_snapshots(access: HubAccess, first: str | None) -> Iterator[Snapshot]:
    """Yield every model snapshot in the cache, those of one repository first.

    Args:
        access: Names the cache.
        first: The repository to start with, ``org/name``.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - only for repository ids

    root = Path(access.cache or constants.HF_HUB_CACHE)
    found = [
        Snapshot(path, hints)
        for path in sorted(root.glob("models--*/snapshots/*"))
        if (hints := base_hint_from_path(path)) is not None
    ]
    yield from sorted(found, key=lambda s: s.hints is None or s.hints.repo != first)
