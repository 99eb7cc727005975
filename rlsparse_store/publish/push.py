"""Pushing a delta or a run to the Hub: one commit, with a model card."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.analysis.plots.heatmap import density_map
from rlsparse_store.delta.encode import encode_delta
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.inspect import report_delta
from rlsparse_store.delta.resolve import subfolder_parts
from rlsparse_store.delta.run import is_run, read_reports
from rlsparse_store.delta.run_files import NOTE_NAME, delta_names, natural_order
from rlsparse_store.delta.verify import check_alone
from rlsparse_store.errors import (
    BaseMismatchError,
    HubOfflineError,
    MissingDependencyError,
    NotFoundError,
    PrivateBaseError,
)
from rlsparse_store.files.base_hint import write_named
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.output import scratch_folder
from rlsparse_store.files.side_files import delta_side_files
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import is_file_name, printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.remote_folder import read_small_file
from rlsparse_store.hub.repo_id import RepoId, parse_repo_id
from rlsparse_store.hub.uploads import Commit, create_branch, create_repo, is_unchanged, publish
from rlsparse_store.pipeline.progress import no_progress
from rlsparse_store.pipeline.threads import resolve_threads
from rlsparse_store.publish.card import CARD, PICTURE, write_card
from rlsparse_store.publish.published_base import (
    PublishedBase,
    find_published_base,
    recorded_base,
    require_base,
)
from rlsparse_store.publish.repo_layout import require_apart

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.pipeline.progress import Progress

__all__ = ["FileUpload", "PushReport", "push_delta", "push_pair"]

LARGEST_CARD: Final = 1 << 20
"""Bytes: a longer text is no card."""

SCHEMA_VERSION: Final = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FileUpload(SummaryRepr):
    """A file to send, or sent.

    Attributes:
        path: Its path in the repository.
        nbytes: Its length.
    """

    path: str
    nbytes: int

    def _summary(self) -> Rows:
        yield "path", self.path
        yield "nbytes", self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PushReport(SummaryRepr):
    """What was published, or would be after a dry run.

    Attributes:
        repo: The repository.
        branch: The branch; ``None`` for the default one.
        commit: The commit with the delta; ``None`` after a dry run that would make one.
        url: Page of the commit or pull request, if one was made.
        base_repo: The base's repository.
        base_revision: Its commit.
        base_is_public: Whether the base is public.
        uploads: Files to send.
        deleted: Files to remove.
        unchanged: Number of files that the repository had.
        upload_bytes: Bytes of the files to send.
        tuned_bytes: Bytes of the tensors of the stored checkpoints.
        has_picture: Whether the card shows a heat map.
    """

    repo: str
    branch: str | None
    commit: str | None
    url: str | None
    base_repo: str
    base_revision: str
    base_is_public: bool
    uploads: list[FileUpload]
    deleted: list[str]
    unchanged: int
    upload_bytes: int
    tuned_bytes: int
    has_picture: bool

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def _summary(self) -> Rows:
        yield "repo", self.repo
        yield "commit", self.commit
        yield "uploads", len(self.uploads)
        yield "upload_bytes", self.upload_bytes
        yield "unchanged", self.unchanged
        yield "base_repo", self.base_repo


def push_delta(  # noqa: PLR0913 - each says one thing of what is published
    delta: str | PathLike[str],
    repo: str,
    *,
    base_id: str | None = None,
    subfolder: str = "",
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    name_private_base: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> PushReport:
    """Publish a delta, or all deltas of a run, on the Hub in one commit.

    The repository gets the delta, the tuned model's small files and a model card. Only new files
    are sent. Of an existing card, only the section that this function writes is replaced. A delta
    is never put inside the folder of another.

    Args:
        delta: Folder of the delta, or of a run of deltas of one base.
        repo: The repository, ``org/name``. It is created if it does not exist.
        base_id: The base on the Hub, ``org/name[@revision]``, for a delta that was encoded from a
            local base and does not name it. Headers and a few small tensors are compared.
        subfolder: Folder within the repository.
        revision: Branch; by default the default one. It is created if it does not exist.
        private: Whether a new repository is private; by default its owner's setting.
        create_pr: Open a pull request to the default branch instead of committing to it.
        commit_message: One line.
        name_private_base: Publish the name of a base that is not public.
        dry_run: Report what would be sent, and send nothing.
        token: Access token for the Hub; by default the stored one.

    Returns:
        What was published.

    Raises:
        NotFoundError: There is no such delta, or its base is not known or not visible.
        FormatError: The delta is damaged.
        CheckpointError: A file beside the delta is a link.
        BaseMismatchError: ``base_id`` is not its base, or the repository has deltas of another one.
        PrivateBaseError: The base is not public, and ``name_private_base`` is not set.
        OutputError: The folder holds a run, or lies inside that of another delta.
        MovedBranchError: Another commit reached the branch first.
        HubError: The Hub failed or refused.

    Example:
        >>> push_delta("qwen-grpo-delta", "me/qwen2.5-7b-grpo")  # doctest: +SKIP
    """
    access = HubAccess(token=token)
    asked = _target(repo, revision, access, create_pr=create_pr)
    folders = _local_deltas(Path(delta), subfolder)
    with _named(folders, base_id, access) as (local, base):
        target = _Target(asked, access)
        if target.head is not None:
            require_apart(RepoId(asked.repo), local, target.head)
        if not (name_private_base or target.is_private(private=private)):
            _require_public(base)
        plan = _Plan(asked, base, local, target)
        report = plan.report()
        if plan.is_empty:
            return replace(report, commit=target.head.repo.revision if target.head else None)
        if dry_run:
            return report
        head = target.ready(private=private)
        message = commit_message or f"Publish {_described(local)} of {base.repo.repo}"
        changes = Commit(files=plan.files, deleted=plan.deleted, message=message)
        published = publish(head, asked.revision, changes, access, create_pr=create_pr)
        return replace(report, commit=published.commit, url=published.url)


def push_pair(
    base: str | PathLike[str],
    tuned: str | PathLike[str],
    repo: str,
    *,
    progress: Progress = no_progress,
    base_revision: str | None = None,
    tuned_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    **options: Any,  # noqa: ANN401 - the options of push_delta
) -> PushReport:
    """Encode a tuned checkpoint against its base, and publish the delta.

    Args:
        base: The base: ``org/name[@revision]``, or a folder or file together with ``base_id``.
        tuned: The tuned checkpoint: a folder, a file or ``org/name[@revision]``.
        repo: The repository, ``org/name``.
        progress: Called with bytes encoded and bytes in all.
        base_revision: Branch, tag or commit of the base on the Hub, if its id does not name one.
        tuned_revision: The same of the tuned checkpoint.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        **options: As for :func:`push_delta`.

    Returns:
        What was published.

    Raises:
        NotFoundError: There is no such checkpoint.
        CheckpointError: A checkpoint is broken or holds only pickled weights.
        DtypeMismatchError: A dtype does not match the base's.
        OutputError: The temporary folder cannot hold the delta.
        RlsparseError: As for :func:`push_delta`.

    Example:
        >>> push_pair("Qwen/Qwen2.5-7B", "checkpoint-200", "me/qwen-grpo")  # doctest: +SKIP
    """
    with scratch_folder() as scratch:
        delta = scratch / "delta"
        encode_delta(
            base,
            tuned,
            delta,
            progress=progress,
            base_revision=base_revision,
            tuned_revision=tuned_revision,
            token=token,
            cache_dir=cache_dir,
        )
        return push_delta(delta, repo, token=token, **options)


def _target(repo: str, revision: str | None, access: HubAccess, *, create_pr: bool) -> RepoId:
    """The repository and branch to publish in."""
    asked = parse_repo_id(repo)
    if asked is None:
        msg = "is not a repository id: give ORG/NAME"
        raise NotFoundError(msg, file=printable(repo))
    asked = RepoId(asked.repo, revision or asked.revision)
    if asked.is_pinned:
        msg = "is a commit, and a push needs a branch: give one, or none"
        raise NotFoundError(msg, file=printable(str(asked)))
    if create_pr and asked.revision not in (None, "main"):
        msg = "a pull request goes to the default branch: omit the revision"
        raise ValueError(msg)
    if access.is_offline:
        msg = "publishing needs the Hub, but HF_HUB_OFFLINE is set"
        raise HubOfflineError(msg, file=printable(str(asked)))
    return asked


def _local_deltas(delta: Path, subfolder: str) -> dict[str, Path]:
    """The local folders of the deltas, by their folders in the repository."""
    inside = subfolder_parts(subfolder)
    folders = {"": delta}
    if is_run(delta):
        folders = {name: delta / name for name in delta_names(delta)}
    named = {"/".join([*inside, *([name] if name else [])]): p for name, p in folders.items()}
    for name in named:
        if not all(is_file_name(part) for part in name.split("/") if part):
            msg = "cannot be a folder's name on every system: rename it"
            raise NotFoundError(msg, file=printable(name))
    return named


@dataclass(frozen=True, slots=True)
class _Local:
    """A delta to publish: its report, and its files by their paths in its folder.

    Attributes:
        report: Its report.
        files: Its files.
        card: The text that a trainer wrote for the model card, if there is one.
    """

    report: DeltaReport
    files: dict[str, Path]
    card: str | None = None


@contextmanager
def _named(
    folders: dict[str, Path], base_id: str | None, access: HubAccess
) -> Iterator[tuple[dict[str, _Local], PublishedBase]]:
    """The deltas, verified and with their base named, and that base."""
    with scratch_folder() as scratch:
        if base_id is None:
            local = {name: _open(folder) for name, folder in folders.items()}
            reports = [delta.report for delta in local.values()]
            repo = recorded_base(reports, next(iter(folders.values())))
            yield local, find_published_base(repo, access, must_exist=False)
            return
        asked = parse_repo_id(base_id)
        if asked is None:
            msg = "is not a repository id: give ORG/BASE or ORG/BASE@COMMIT"
            raise NotFoundError(msg, file=printable(base_id))
        base = find_published_base(asked, access, must_exist=True)
        local = {
            name: _open(folder, scratch / str(number), base, access)
            for number, (name, folder) in enumerate(folders.items())
        }
        yield local, base


def _open(
    folder: Path,
    scratch: Path | None = None,
    base: PublishedBase | None = None,
    access: HubAccess | None = None,
) -> _Local:
    """A delta and its files. A given base is compared, and named in a copy of the last file."""
    with DeltaReader(folder) as reader:
        check_alone(reader, resolve_threads(None))
        report = report_delta(reader)
        files = {f"{DELTA_FOLDER}/{name}": folder / DELTA_FOLDER / name for name in reader.names}
        if (note := folder / DELTA_FOLDER / NOTE_NAME).is_file():
            files[f"{DELTA_FOLDER}/{NOTE_NAME}"] = note
        weights = {f"{DELTA_FOLDER}/", CARD}
        files |= {name: folder / name for name in delta_side_files(folder, weights)}
        if base is None or base.listing is None or scratch is None or access is None:
            return _Local(report, files, _trainer_card(folder))
        repo, revision = base.repo.repo, str(base.repo.revision)
        if (report.base_repo, report.base_revision) == (repo, revision):
            return _Local(report, files, _trainer_card(folder))
        require_base(reader, base.listing, access)
        write_named(reader, scratch, repo, revision)
        files[f"{DELTA_FOLDER}/{reader.shards[-1].source.path.name}"] = scratch
    named = replace(report, base_repo=repo, base_revision=revision)
    return _Local(named, files, _trainer_card(folder))


def _trainer_card(folder: Path) -> str | None:
    """The card that encoding copied from the checkpoint."""
    card = folder / CARD
    is_own = card.is_file() and not card.is_symlink() and card.stat().st_size <= LARGEST_CARD
    return card.read_text(errors="replace") if is_own else None


def _require_public(base: PublishedBase) -> None:
    if base.is_public:
        return
    state = "is private" if base.listing else "is not visible"
    msg = (
        f"the base {printable(str(base.repo))} {state}, and the delta would reveal its name: "
        "confirm with --yes or name_private_base=True"
    )
    raise PrivateBaseError(msg)


class _Target:
    """The repository to publish in, which may not exist yet.

    Args:
        asked: The repository and branch.
        access: How to reach the Hub.
    """

    def __init__(self, asked: RepoId, access: HubAccess) -> None:
        self.asked = asked
        self.access = access
        self._default = self._list(RepoId(asked.repo))
        self._branch = self._list(asked) if asked.revision and self._default else self._default
        self.head = self._branch or self._default

    def _list(self, repo: RepoId) -> Listing | None:
        try:
            return list_repo(repo, "delta", self.access)
        except HubOfflineError:
            raise
        except NotFoundError:
            return None

    def is_private(self, *, private: bool | None) -> bool:
        """Whether the repository is private, or will be."""
        return bool(private) if self._default is None else self._default.is_private

    def ready(self, *, private: bool | None) -> Listing:
        """Its head. Creates repository and branch if needed."""
        if self._default is None:
            create_repo(self.asked, private=private, access=self.access)
            self._default = list_repo(RepoId(self.asked.repo), "delta", self.access)
            if self.asked.revision is None:
                self._branch = self._default
            else:
                self._branch = self._list(self.asked)
        if self._branch is None:
            create_branch(self._default.repo, str(self.asked.revision), self.access)
            self._branch = list_repo(self.asked, "delta", self.access)
        return self._branch


class _Plan:
    """The changes of a commit."""

    def __init__(
        self,
        asked: RepoId,
        base: PublishedBase,
        local: dict[str, _Local],
        target: _Target,
    ) -> None:
        self._repo = asked
        self._base = base
        self._local = local
        self._target = target
        self._there = target.head.files if target.head else {}
        wanted: dict[str, Path] = {
            f"{name}/{path}".lstrip("/"): file
            for name, delta in local.items()
            for path, file in delta.files.items()
        }
        self.files: dict[str, Path | bytes] = {
            path: file
            for path, file in wanted.items()
            if not is_unchanged(file, self._there.get(path))
        }
        self.deleted = self._stale(wanted)
        self.unchanged = len(wanted) - len(self.files)
        self.has_picture = PICTURE in self._there
        # Other versions of this package or of matplotlib write card and picture differently: leave
        # them alone unless a delta changed.
        if not self.is_empty or CARD not in self._there:
            self._add_card()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to change."""
        return not self.files and not self.deleted

    def _stale(self, wanted: dict[str, Path]) -> list[str]:
        """Files of an earlier delta in the same folder."""
        folders = [f"{name}/{DELTA_FOLDER}/".lstrip("/") for name in self._local]
        return [
            path
            for path in self._there
            if path not in wanted and any(path.startswith(folder) for folder in folders)
        ]

    def _add_card(self) -> None:
        reports = self._reports()
        last = max(reports, key=natural_order)
        try:
            picture = density_map(reports[last])
        except MissingDependencyError:
            picture = None
        self.has_picture = picture is not None
        if picture is None and PICTURE in self._there:
            self.deleted.append(PICTURE)
        if picture is not None and not is_unchanged(picture, self._there.get(PICTURE)):
            self.files[PICTURE] = picture
        card = write_card(
            self._old_card(), self._repo, self._base, reports, has_picture=self.has_picture
        ).encode()
        if not is_unchanged(card, self._there.get(CARD)):
            self.files[CARD] = card

    def _reports(self) -> dict[str, DeltaReport]:
        """All deltas of the repository after the commit, which must have one base."""
        found: dict[str, DeltaReport] = {}
        if self._target.head is not None:
            found = read_reports(self._target.head, self._target.access, skip=self._local)
        found |= {name: delta.report for name, delta in self._local.items()}
        if len({report.base_digest for report in found.values()}) > 1:
            msg = "has deltas of another base: publish this one in another repository"
            raise BaseMismatchError(msg, file=printable(str(self._repo)))
        return found

    def _old_card(self) -> str | None:
        if self._target.head is None or CARD not in self._there:
            # The first text of a new card is the trainer's own.
            return next((delta.card for delta in self._local.values() if delta.card), None)
        return read_small_file(self._target.head, CARD, self._target.access).decode(
            errors="replace"
        )

    def report(self) -> PushReport:
        """The report of this plan."""
        uploads = [
            FileUpload(path=path, nbytes=len(c) if isinstance(c, bytes) else c.stat().st_size)
            for path, c in sorted(self.files.items())
        ]
        return PushReport(
            repo=self._repo.repo,
            branch=self._repo.revision,
            commit=None,
            url=None,
            base_repo=self._base.repo.repo,
            base_revision=str(self._base.repo.revision),
            base_is_public=self._base.is_public,
            uploads=uploads,
            deleted=sorted(self.deleted),
            unchanged=self.unchanged,
            upload_bytes=sum(upload.nbytes for upload in uploads),
            tuned_bytes=sum(delta.report.tuned_bytes for delta in self._local.values()),
            has_picture=self.has_picture,
        )


def _described(local: dict[str, _Local]) -> str:
    return "a sparse delta" if len(local) == 1 else f"{len(local)} sparse deltas"
