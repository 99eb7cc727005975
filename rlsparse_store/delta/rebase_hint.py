"""Recording another place of a base, after comparing its content: it moved, or lost its commit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.delta.bucket_places import require_local
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.resolve import as_repo_id
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_files import INDEX_NAME
from rlsparse_store.errors import BaseMismatchError, NotFoundError, OutputError
from rlsparse_store.files.base_hint import write_named
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.output import replacing_file
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.selection import CheckpointSelection
from rlsparse_store.hub.snapshots import fetch_snapshot
from rlsparse_store.pipeline.fingerprints import checkpoint_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.files.hub_cache import BaseHint
    from rlsparse_store.hub.repo_id import RepoId

__all__ = ["RebaseHintReport", "rebase_hint"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RebaseHintReport(SummaryRepr):
    """Where the base is, and which deltas now say so.

    Attributes:
        base_repo: The base's repository.
        base_revision: Its commit.
        base_digest: State digest of the base, which is that of every delta.
        rewritten: Folders of the deltas that named another place; an empty string for the delta
            itself.
        unchanged: Folders of those that named this one.
    """

    base_repo: str
    base_revision: str
    base_digest: str
    rewritten: list[str]
    unchanged: list[str]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def _summary(self) -> Rows:
        yield "base_repo", self.base_repo
        yield "base_revision", self.base_revision
        yield "rewritten", len(self.rewritten)
        yield "unchanged", len(self.unchanged)


def rebase_hint(
    delta: str | PathLike[str],
    base: str,
    *,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> RebaseHintReport:
    """Record where the base of a local delta, or of every entry of a local run, is on the Hub.

    For a base that was uploaded again, or whose history was squashed. The base is downloaded, and
    the digest of its whole content is compared with that of every delta before anything is
    written. Then the last file of each delta is replaced, whole. Chunks and digests stay.

    Args:
        delta: Folder of the delta, or of a run.
        base: The base on the Hub, ``org/name[@revision]``.
        base_revision: Branch, tag or commit of the base, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        Where the base is, and which deltas were rewritten.

    Raises:
        NotFoundError: There is no such delta or base, or one of them is not where it has to be.
        BaseMismatchError: The base has other content than that of a delta. Nothing is written.
        FormatError: A delta is damaged.
        OutputError: A delta cannot be written, or is a link into a cache.
        RunLockedError: Another process is writing the run.
        HubError: The Hub failed.

    Example:
        >>> rebase_hint("run", "Qwen/Qwen2.5-7B@main").rewritten  # doctest: +SKIP
        ['checkpoint-100', 'checkpoint-200']
    """
    require_local(delta)
    if as_repo_id(delta) is not None:
        msg = "is on the Hub: pull it, record the base in what you pulled, and push that"
        raise NotFoundError(msg, file=printable(str(delta)))
    asked = as_repo_id(base, base_revision)
    if asked is None:
        msg = "is a local path, which is never recorded: give ORG/NAME@REVISION"
        raise NotFoundError(msg, file=printable(str(base)))
    path, run = Path(delta), place_of(delta)
    is_run = run.is_run()
    folders = [row.folder for row in run.read().rows] if is_run else [""]
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    held = {folder: _base_digest(path / folder) for folder in folders}
    found, digest = _published(asked, access)
    for folder in folders:
        if held[folder] != digest:
            msg = (
                f"wrong base: {found.repo}@{found.revision} has other content than the base of "
                "this delta; nothing was written"
            )
            raise BaseMismatchError(msg, file=printable(str(path / folder)))
    # Beside its other entries, an entry has a row with the bytes of its files.
    indexed = run if is_run else place_of(path.parent)
    if not (is_run or (path.parent / INDEX_NAME).is_file()):
        return _rewrite(path, folders, found, digest)
    with indexed.write() as writer:
        writer.require_held()
        report = _rewrite(path, folders, found, digest)
    indexed.repair()
    return report


def _base_digest(delta: Path) -> str:
    """The state digest of a delta's base, if the delta's files can be replaced."""
    with DeltaReader(delta) as reader:
        last = reader.shards[-1].source.path
        if last.is_symlink():
            msg = "is a link, as in the Hub's cache: pull the delta into a folder of its own"
            raise OutputError(msg, file=printable(str(last)))
        return reader.manifest.base_digest


def _published(asked: RepoId, access: HubAccess) -> tuple[BaseHint, str]:
    """The commit of a base on the Hub, and the state digest of its content."""
    # The digest of the content finds what a comparison with the Hub's checksums would find.
    selection = CheckpointSelection("base", is_checked=False)
    snapshot = fetch_snapshot(asked, selection, access)
    if snapshot.hints is None:
        msg = "the Hub's cache does not say which commit this is; give another --cache-dir"
        raise NotFoundError(msg, file=printable(str(asked)))
    with open_checkpoint(snapshot.path) as checkpoint:
        return snapshot.hints, checkpoint_state(checkpoint)


def _rewrite(path: Path, folders: Sequence[str], base: BaseHint, digest: str) -> RebaseHintReport:
    rewritten, unchanged = [], []
    for folder in folders:
        with DeltaReader(path / folder) as reader:
            manifest = reader.manifest
            is_named = (manifest.repo, manifest.revision) == (base.repo, base.revision)
            if is_named and manifest.base_delta is None:
                unchanged.append(folder)
                continue
            with replacing_file(reader.shards[-1].source.path) as file:
                write_named(reader, file, base.repo, base.revision)
            rewritten.append(folder)
    return RebaseHintReport(
        base_repo=base.repo,
        base_revision=base.revision,
        base_digest=digest,
        rewritten=rewritten,
        unchanged=unchanged,
    )
