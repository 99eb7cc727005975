"""Snapshots of repositories: downloaded, or found in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.checkpoint import CARRIED_FILES, BaseHints, hints_from_path
from rlsparse_store.errors import NotFoundError, RlsparseError
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlsparse_store.hub.ids import RepoId

__all__ = [
    "CHECKPOINT_FILES",
    "HubAccess",
    "Snapshot",
    "cached_snapshots",
    "fetch_snapshot",
]

CHECKPOINT_FILES: Final = ("model*.safetensors", "model.safetensors.index.json", *CARRIED_FILES)
"""Patterns of what is needed of a base: its safetensors weights and its small files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """How to reach the Hub.

    Attributes:
        token: An access token, ``False`` for none; by default the one that is stored.
        cache_dir: The cache; by default the Hub client's.
        local_files_only: Whether only the cache is looked at.
    """

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


class Snapshot(NamedTuple):
    """The files of one commit in the cache.

    Attributes:
        path: Their folder.
        hints: Which repository and commit it is, as the cache's folders say it.
    """

    path: Path
    hints: BaseHints | None


def fetch_snapshot(
    repo: RepoId,
    what: str,
    access: HubAccess,
    allow: Sequence[str],
    ignore: Sequence[str] = (),
) -> Snapshot:
    """Download the files of a repository that are not in the cache yet.

    Args:
        repo: The repository and its revision.
        what: What it is fetched as, for errors: the base or the delta.
        access: How to reach the Hub.
        allow: Patterns of the files to fetch.
        ignore: Patterns of files not to fetch even so.

    Raises:
        NotFoundError: There is no such repository or revision, it is gated, or it is not in the
            cache and the Hub cannot be asked.
        RlsparseError: The Hub failed.
    """
    import huggingface_hub  # noqa: PLC0415 - only when an id is given
    from huggingface_hub import constants, errors  # noqa: PLC0415 - as above

    name = shown(f"{repo.repo}@{repo.revision}" if repo.revision else repo.repo)
    try:
        path = huggingface_hub.snapshot_download(
            repo.repo,
            revision=repo.revision,
            cache_dir=access.cache_dir,
            token=access.token,
            local_files_only=access.local_files_only,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
        )
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repo.repo}"
        msg = f"the {what} is gated: accept its terms at {page} and log in"
        raise NotFoundError(msg, file=name) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        msg = (
            f"there is no such repository or revision for the {what}, or it is private: check the "
            "name, and log in if it is yours"
        )
        raise NotFoundError(msg, file=name) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        msg = (
            f"the {what} is not in the cache and the Hub cannot be reached: go online once, or "
            "give a local folder, which must exist (there is none of this name)"
        )
        raise NotFoundError(msg, file=name) from error
    except errors.HfHubHTTPError as error:
        msg = f"the Hub failed while the {what} was fetched ({shown(str(error))}); try again later"
        raise RlsparseError(msg, file=name) from error
    return Snapshot(Path(path), hints_from_path(Path(path)))


def cached_snapshots(access: HubAccess, first: str | None) -> Iterator[Snapshot]:
    """Every snapshot of a model in the cache, those of one repository before the others.

    Args:
        access: Says which cache.
        first: The repository to begin with, ``org/name``.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - only when a base is looked for

    root = Path(access.cache_dir or constants.HF_HUB_CACHE)
    found = [
        Snapshot(path, hints)
        for path in sorted(root.glob("models--*/snapshots/*"))
        if (hints := hints_from_path(path)) is not None
    ]
    yield from sorted(found, key=lambda s: s.hints is None or s.hints.repo != first)
