"""Pulling a delta, or entries of a run, from the Hub into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlsparse_store.delta.bucket_places import require_local
from rlsparse_store.delta.entry_choice import choose_entries
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.listed_run import within
from rlsparse_store.delta.resolve import delta_folders, find_base, subfolder_parts
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.delta.verify import verify_delta
from rlsparse_store.errors import NotFoundError
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.copy import copy_files
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.output import output_folder
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.listing import list_repo
from rlsparse_store.hub.repo_id import RepoId, parse_repo_id
from rlsparse_store.hub.snapshots import cached_snapshot
from rlsparse_store.pipeline.chunk_decoder import check_sources
from rlsparse_store.pipeline.fingerprints import check_origins
from rlsparse_store.pipeline.threads import resolve_threads
from rlsparse_store.publish.pull_run import (
    CachedRun,
    ListedRun,
    PulledEntries,
    delta_files,
    pull_entries,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.hub.listing import Listing

__all__ = ["PullReport", "pull_delta"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PullReport(SummaryRepr):
    """What was pulled.

    Attributes:
        repo: The repository.
        revision: The commit.
        deltas: Folders of the deltas within ``out``; an empty string for ``out`` itself.
        held: Those that ``out`` had.
        files: Files written.
        nbytes: Their bytes.
        base: The base in the Hub's cache, if it was asked for.
    """

    repo: str
    revision: str
    deltas: list[str]
    held: list[str]
    files: int
    nbytes: int
    base: str | None

    def _summary(self) -> Rows:
        yield "repo", self.repo
        yield "revision", self.revision
        yield "deltas", len(self.deltas)
        yield "files", self.files
        yield "nbytes", self.nbytes


def pull_delta(  # noqa: PLR0913 - each option is one of the command line's
    repo: str,
    out: str | PathLike[str],
    *,
    subfolder: str = "",
    only: Sequence[str] = (),
    best: Literal["max", "min"] = "max",
    with_base: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> PullReport:
    """Download a delta, or entries of a run, from the Hub into a folder.

    Files that the Hub's cache has are not downloaded again. Every file is compared with the Hub's
    checksums and every stored byte with the delta's, before a delta appears under its final name.
    The base is not needed.

    Entries of a run are written one after another, and the folder is a run. A later call adds
    entries to it: those that it has are not downloaded again. An entry never replaces another: one
    of the same name and another content gets the next number. Pins of the entries come along.

    Args:
        repo: The repository, ``org/name[@revision]``.
        out: Folder to write, which must not exist or must be empty; for a run, it may be a run.
        subfolder: Pull the delta or run in this folder of the repository.
        only: Entries of the run to pull, by default all: each is a folder, name or tuned digest,
            ``last``, ``best:METRIC`` or a pattern such as ``checkpoint-*00``.
        best: Whether the best entry has the largest or the smallest value.
        with_base: Also download the base into the Hub's cache, where every function finds it, and
            compare its content.
        revision: Branch, tag or commit, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        What was pulled.

    Raises:
        NotFoundError: There is no such repository, or no such delta in it; with ``with_base``, no
            such base.
        BaseMismatchError: The folder is a run of another base, or the base has other content.
        ChecksumError: A downloaded file does not match its checksum.
        FormatError: A delta is damaged.
        HubError: The Hub failed.
        OutputError: The folder cannot be written, or is no run.
        RunLockedError: Another process is writing the local run.
        RunError: An index or a note is damaged.

    Example:
        >>> pull_delta("me/qwen2.5-7b-grpo", "qwen-grpo-delta")  # doctest: +SKIP
    """
    require_local(repo)
    require_local(out)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    asked = parse_repo_id(repo)
    if asked is None:
        msg = "is not a repository id: give ORG/NAME or ORG/NAME@REVISION"
        raise NotFoundError(msg, file=printable(repo))
    asked = RepoId(asked.repo, revision or asked.revision)
    inside = "/".join(subfolder_parts(subfolder))
    listing = None if access.is_offline else list_repo(asked, "delta", access)
    pinned = asked if listing is None else listing.repo
    run = (
        CachedRun(asked, inside, access) if listing is None else ListedRun(listing, inside, access)
    )
    if _is_delta(asked, inside, listing, access):
        if only:
            msg = "is a single delta, and only= chooses entries of a run"
            raise NotFoundError(msg, file=printable(run.name))
        pulled = _pull_delta(run, Path(out))
    else:
        rows = run.rows()
        if not rows:
            raise _no_delta(run.name, listing)
        pulled = pull_entries(run, choose_entries(rows, only, best, run.name), Path(out))
    deltas = [*pulled.held, *pulled.new]
    base = _fetch_base(Path(out, deltas[0]), access) if with_base else None
    return PullReport(
        repo=asked.repo,
        revision=_commit(pinned, access),
        deltas=sorted(deltas, key=natural_order),
        held=pulled.held,
        files=pulled.files,
        nbytes=pulled.nbytes,
        base=base,
    )


def _is_delta(repo: RepoId, inside: str, listing: Listing | None, access: HubAccess) -> bool:
    """Whether a folder of a repository, or of its cached snapshot, is a delta."""
    if listing is not None:
        return inside in delta_folders(listing)
    snapshot = cached_snapshot(repo, "delta", access)
    return snapshot is not None and (snapshot.path / inside / DELTA_FOLDER).is_dir()


def _no_delta(name: str, listing: Listing | None) -> NotFoundError:
    msg = "holds no delta"
    if listing is None:
        msg += " in the cache"
    elif found := delta_folders(listing):
        msg += f"; there are deltas in {printable(', '.join(found))} (--subfolder)"
    return NotFoundError(msg, file=printable(name))


def _pull_delta(source: ListedRun | CachedRun, out: Path) -> PulledEntries:
    """Write one delta into a new folder."""
    prefix = within(source.run, "")
    with output_folder(out) as folder:
        snapshot = source.fetch(delta_files(prefix))
        # Only what was fetched: other files of the repository in the cache were not compared.
        names = [n.removeprefix(prefix) for n in snapshot.names if n.startswith(prefix)]
        nbytes = copy_files(snapshot.path / prefix, names, folder)
        verify_delta(folder)
    return PulledEntries([""], [], len(names), nbytes)


def _fetch_base(delta: Path, access: HubAccess) -> str:
    """Download the base of a delta into the Hub's cache, and compare its content."""
    with DeltaReader(delta) as reader:
        path = find_base(reader, None, None, access)
        with open_checkpoint(path) as base:
            check_sources(reader, base)
            check_origins(reader, base, resolve_threads(None), include_covered=True)
    return str(path)


def _commit(repo: RepoId, access: HubAccess) -> str:
    snapshot = None if repo.is_pinned else cached_snapshot(repo, "delta", access)
    return snapshot.hints.revision if snapshot and snapshot.hints else str(repo.revision)
