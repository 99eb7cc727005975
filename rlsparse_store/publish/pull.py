"""Pulling a delta, or all deltas of a run, from the Hub into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.resolve import delta_folders, subfolder_parts
from rlsparse_store.delta.run_files import delta_names
from rlsparse_store.delta.verify import verify_delta
from rlsparse_store.errors import NotFoundError
from rlsparse_store.files.copy import copy_files
from rlsparse_store.files.output import output_folder
from rlsparse_store.files.side_files import SIDE_FILES
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.listing import list_repo
from rlsparse_store.hub.repo_id import RepoId, parse_repo_id
from rlsparse_store.hub.selection import FileSelection
from rlsparse_store.hub.snapshots import fetch_listed, fetch_snapshot
from rlsparse_store.publish.card import CARD, PICTURE

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.hub.snapshots import Snapshot

__all__ = ["PullReport", "pull_delta"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PullReport(SummaryRepr):
    """What was pulled.

    Attributes:
        repo: The repository.
        revision: The commit.
        deltas: Folders of the deltas within ``out``; an empty string for ``out`` itself.
        files: Files written.
        nbytes: Their bytes.
    """

    repo: str
    revision: str
    deltas: list[str]
    files: int
    nbytes: int

    def _summary(self) -> Rows:
        yield "repo", self.repo
        yield "revision", self.revision
        yield "deltas", len(self.deltas)
        yield "files", self.files
        yield "nbytes", self.nbytes


def pull_delta(
    repo: str,
    out: str | PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> PullReport:
    """Download a delta, or all deltas of a run, from the Hub into a folder.

    Files that the Hub's cache has are not downloaded again. Every file is compared with the Hub's
    checksums and every stored byte with the delta's, before anything appears under the final
    name. The base is not needed.

    Args:
        repo: The repository, ``org/name[@revision]``.
        out: Folder to write, which must not exist or must be empty.
        subfolder: Pull only the delta in this folder of the repository.
        revision: Branch, tag or commit, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        What was pulled.

    Raises:
        NotFoundError: There is no such repository, or no delta in it.
        ChecksumError: A downloaded file does not match its checksum.
        FormatError: A delta is damaged.
        HubError: The Hub failed.
        OutputError: The folder cannot be written.

    Example:
        >>> pull_delta("me/qwen2.5-7b-grpo", "qwen-grpo-delta")  # doctest: +SKIP
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    asked = parse_repo_id(repo)
    if asked is None:
        msg = "is not a repository id: give ORG/NAME or ORG/NAME@REVISION"
        raise NotFoundError(msg, file=printable(repo))
    asked = RepoId(asked.repo, revision or asked.revision)
    prefix = "".join(f"{part}/" for part in subfolder_parts(subfolder))
    with output_folder(Path(out)) as folder:
        snapshot = _fetched(asked, subfolder, prefix, access)
        # Only what was fetched: other files of the repository in the cache were not compared.
        names = [n.removeprefix(prefix) for n in snapshot.names if n.startswith(prefix)]
        nbytes = copy_files(snapshot.path / prefix, names, folder)
        deltas = [""] if (folder / DELTA_FOLDER).is_dir() else delta_names(folder)
        if not deltas:
            msg = "holds no delta"
            raise NotFoundError(msg, file=printable(f"{asked}/{subfolder}".rstrip("/")))
        for delta in deltas:
            verify_delta(folder / delta)
        return PullReport(
            repo=asked.repo,
            revision=_commit(snapshot, asked),
            deltas=deltas,
            files=len(names),
            nbytes=nbytes,
        )


def _wanted(prefix: str) -> FileSelection:
    """The deltas under a prefix, the small files beside them, and the card with its picture."""
    beside = (f"{DELTA_FOLDER}/*", f"*/{DELTA_FOLDER}/*", CARD, f"*/{CARD}", PICTURE, *SIDE_FILES)
    return FileSelection("delta", [f"{prefix}{pattern}" for pattern in beside])


def _fetched(asked: RepoId, subfolder: str, prefix: str, access: HubAccess) -> Snapshot:
    """The files of the deltas, once it is known that there are any."""
    if access.is_offline:
        return fetch_snapshot(asked, _wanted(prefix), access)
    listing = list_repo(asked, "delta", access)
    found = delta_folders(listing)
    if not any(f"{folder}/".startswith(prefix) for folder in found):
        msg = "holds no delta"
        if found:
            msg += f"; there are deltas in {printable(', '.join(found))} (--subfolder)"
        raise NotFoundError(msg, file=printable(f"{asked}/{subfolder}".rstrip("/")))
    return fetch_listed(listing, _wanted(prefix), access)


def _commit(snapshot: Snapshot, asked: RepoId) -> str:
    return snapshot.hints.revision if snapshot.hints else str(asked.revision)
