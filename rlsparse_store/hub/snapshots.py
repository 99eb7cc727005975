"""Snapshots of repositories: downloaded and compared with the Hub's ids, or in the cache."""

from __future__ import annotations

import logging
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.errors import ChecksumError, NotFoundError
from rlsparse_store.files.hub_cache import BaseHint, base_hint_from_path
from rlsparse_store.files.side_files import CARRIED_FILES
from rlsparse_store.format.names import printable
from rlsparse_store.hub.calls import Deadline, call, map_concurrently, retry, transfer_deadline
from rlsparse_store.hub.errors import not_cached
from rlsparse_store.hub.listing import HubFile, Listing, content_id, list_repo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.repo_id import RepoId

__all__ = [
    "CHECKPOINT_FILES",
    "FileSelection",
    "Snapshot",
    "cached_snapshot",
    "cached_snapshots",
    "fetch_snapshot",
]

log = logging.getLogger(__name__)

CHECKPOINT_FILES: Final = ("model*.safetensors", "model.safetensors.index.json", *CARRIED_FILES)
"""Patterns of what is needed of a base: its safetensors weights and its small files."""


class Snapshot(NamedTuple):
    """The files of one commit in the cache.

    Attributes:
        path: Their folder.
        hints: Which repository and commit it is, as the cache's folders say it.
        names: Those files that were fetched; none of a snapshot that was only found.
    """

    path: Path
    hints: BaseHint | None
    names: Sequence[str] = ()


class FileSelection(NamedTuple):
    """Which files of a repository are fetched, and what of them is compared.

    Attributes:
        what: What they are fetched as, for errors: the base or the delta.
        allow: Patterns of the files.
        ignore: Patterns of files not to fetch even so.
        is_checked: Whether files that are in the cache already are compared with the Hub's ids,
            too. What was just downloaded always is, for the client does not look.
    """

    what: str
    allow: Sequence[str]
    ignore: Sequence[str] = ()
    is_checked: bool = True

    def among(self, names: Iterable[str]) -> list[str]:
        """Those of these names that are wanted."""
        return [
            name
            for name in names
            if any(fnmatchcase(name, pattern) for pattern in self.allow)
            and not any(fnmatchcase(name, pattern) for pattern in self.ignore)
        ]


def fetch_snapshot(repo: RepoId, wanted: FileSelection, access: HubAccess) -> Snapshot:
    """Download the files of a repository that are not in the cache yet.

    Args:
        repo: The repository and its revision.
        wanted: Which files.
        access: How to reach the Hub.

    Raises:
        NotFoundError: There is no such repository or revision, it is gated, it has none of these
            files, or it is not in the cache and the Hub cannot be asked.
        ChecksumError: What was downloaded is not what the Hub says.
        HubError: The Hub failed.
    """
    if access.is_offline:
        return _fetch_offline(repo, wanted, access)
    listing = list_repo(repo, wanted.what, access)
    names = wanted.among(listing.files)
    if not names:
        msg = f"the repository has no files of a {wanted.what}"
        raise NotFoundError(msg, file=printable(str(repo)))
    fetching = [_Fetching(listing, name, wanted, access) for name in names]
    missing = [one for one in fetching if not one.is_cached]
    if missing:
        nbytes = sum(listing.files[one.name].nbytes for one in missing)
        log.info(
            "fetching %d of %d files of the %s, %s MB, from %s",
            *(len(missing), len(names), wanted.what, f"{nbytes / 1e6:,.1f}"),
            printable(str(listing.repo)),
        )
    paths = map_concurrently(_Fetching.fetch, fetching)
    folder = paths[0].parents[names[0].count("/")]
    return Snapshot(folder, base_hint_from_path(folder), names)


def _fetch_offline(repo: RepoId, wanted: FileSelection, access: HubAccess) -> Snapshot:
    snapshot = cached_snapshot(repo, wanted.what, access)
    if snapshot is None:
        raise not_cached(wanted.what, printable(str(repo)))
    folder = snapshot.path
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    names = wanted.among(found)
    if wanted.is_checked:
        for name in names:
            _check_cached(folder / name, repo)
    return snapshot._replace(names=names)


def _check_cached(path: Path, repo: RepoId) -> None:
    """Compare a file with the id that the cache keeps it under: where links work, its name."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) in {40, 64} and content_id(path, blob) != blob:
        msg = (
            "the file in the cache is damaged: run `hf cache verify` on its repository, or "
            "remove it from the cache and download it again"
        )
        raise ChecksumError(f"{printable(path.name)}: {msg}", file=printable(str(repo)))


def cached_snapshot(repo: RepoId, what: str, access: HubAccess) -> Snapshot | None:
    """What the cache has of a repository at a revision; whether that is all, it does not know.

    Raises:
        HubError: The client failed.
    """
    import huggingface_hub  # noqa: PLC0415 - only when an id is given

    def find() -> str:
        return huggingface_hub.snapshot_download(
            repo.repo, revision=repo.revision, cache_dir=access.cache, local_files_only=True
        )

    try:
        path = Path(call(find, what, repo, Deadline(access.timeout)))
    except NotFoundError:
        return _newest(repo, access) if repo.revision is None else None
    return Snapshot(path, base_hint_from_path(path))


def _newest(repo: RepoId, access: HubAccess) -> Snapshot | None:
    """What was fetched last of a repository: commits are fetched, so no branch may be known."""
    found = [
        snapshot
        for snapshot in cached_snapshots(access, repo.repo)
        if snapshot.hints and snapshot.hints.repo == repo.repo
    ]
    return max(found, key=lambda snapshot: snapshot.path.stat().st_mtime_ns, default=None)


class _Fetching:
    """One file on its way into the cache."""

    def __init__(
        self, listing: Listing, name: str, wanted: FileSelection, access: HubAccess
    ) -> None:
        self._repo = listing.repo
        self._file: HubFile = listing.files[name]
        self.name = name
        self._wanted = wanted
        self._access = access
        self._cached = self._find()

    def _find(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - an id was given

        cached = try_to_load_from_cache(
            self._repo.repo,
            self.name,
            cache_dir=self._access.cache,
            revision=self._repo.revision,
        )
        return Path(cached) if isinstance(cached, str) else None

    @property
    def is_cached(self) -> bool:
        """Whether the cache has the file, sound or not."""
        return self._cached is not None

    def fetch(self) -> Path:
        """The file in the cache. What is damaged there is downloaded once more."""
        if self._cached is not None:
            path = self._cached
            if not self._wanted.is_checked or self._is_right(path):
                return path
        else:
            path = self._download(force=False)
            if self._is_right(path):
                return path
        path = self._download(force=True)
        if not self._is_right(path):
            msg = (
                f"{printable(self.name)}: what was downloaded twice is not what the Hub says it "
                "is; the connection or the Hub is at fault, try again later"
            )
            raise ChecksumError(msg, file=printable(str(self._repo)))
        return path

    def _is_right(self, path: Path) -> bool:
        if path.stat().st_size != self._file.nbytes:
            return False
        return not self._file.content or (
            content_id(path, self._file.content) == self._file.content
        )

    def _download(self, *, force: bool) -> Path:
        import huggingface_hub  # noqa: PLC0415 - an id was given

        patience = transfer_deadline(self._access, self._file.nbytes, is_watched=True)

        def download() -> str:
            return huggingface_hub.hf_hub_download(
                self._repo.repo,
                self.name,
                revision=self._repo.revision,
                cache_dir=self._access.cache,
                token=self._access.token,
                force_download=force,
                library_name="rlsparse-store",
                tqdm_class=_watching_bar(patience.renew),
            )

        return Path(retry(download, self._wanted.what, self._repo, patience))


def _watching_bar(renew: Callable[[], None]) -> type[Any]:
    """The client's progress bar, on a terminal only, which tells whenever something arrives."""
    from huggingface_hub import utils  # noqa: PLC0415 - an id was given

    bar: Any = getattr(utils, "tqdm")  # noqa: B009 - the client exports it without types

    class WatchingBar(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
            kwargs["disable"] = bool(kwargs.get("disable")) or not sys.stderr.isatty()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            renew()
            printable: bool | None = super().update(n)
            return printable

    return WatchingBar


def cached_snapshots(access: HubAccess, first: str | None) -> Iterator[Snapshot]:
    """Every snapshot of a model in the cache, those of one repository before the others.

    Args:
        access: Says which cache.
        first: The repository to begin with, ``org/name``.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - only when a base is looked for

    root = Path(access.cache or constants.HF_HUB_CACHE)
    found = [
        Snapshot(path, hints)
        for path in sorted(root.glob("models--*/snapshots/*"))
        if (hints := base_hint_from_path(path)) is not None
    ]
    yield from sorted(found, key=lambda s: s.hints is None or s.hints.repo != first)
