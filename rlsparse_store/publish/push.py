"""Pushing a delta or a run to the Hub: one commit, with a model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.delta.bucket_places import require_local
from rlsparse_store.delta.encode import encode_delta
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.resolve import subfolder_parts
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.errors import (
    HubOfflineError,
    MovedBranchError,
    NotFoundError,
    PrivateBaseError,
)
from rlsparse_store.files.output import scratch_folder
from rlsparse_store.format.names import is_file_name, printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.repo_id import RepoId, parse_repo_id
from rlsparse_store.hub.uploads import Commit, create_branch, create_repo, publish
from rlsparse_store.pipeline.progress import no_progress
from rlsparse_store.publish.local_delta import open_named
from rlsparse_store.publish.push_plan import Publication, PushPlan

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.pipeline.progress import Progress
    from rlsparse_store.publish.published_base import PublishedBase

__all__ = ["FileUpload", "PushReport", "push_delta", "push_pair"]

ATTEMPTS: Final = 5
"""Attempts to publish entries on top of what others publish at the same time."""

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
        added: Folders of deltas that the repository lacks.
        pruned: Folders of entries to remove, which the run does not have.
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
    added: list[str]
    pruned: list[str]
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
    prune: bool = False,
    dry_run: bool = False,
    token: str | bool | None = None,
) -> PushReport:
    """Publish a delta, or a run, on the Hub in one commit.

    The repository gets the deltas, the small files of the tuned models, a model card, and of a run
    its index and pins. Only new files are sent. Of an existing card, only the section that this
    function writes is replaced. A delta is never put inside the folder of another.

    Entries that the repository has and the run lacks stay. An entry whose folder has another
    checkpoint there gets the next number (``checkpoint-100.2``). If another push comes first, the
    entries are published on top of it.

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
        prune: Also remove the entries from the branch that the run does not have and that are not
            pinned there. Earlier commits keep them.
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
        RunError: The index of the run or the note of an entry is damaged.
        MovedBranchError: Another commit reached the branch first, several times for a run.
        HubError: The Hub failed or refused.

    Example:
        >>> push_delta("qwen-grpo-delta", "me/qwen2.5-7b-grpo")  # doctest: +SKIP
    """
    require_local(delta)
    access = HubAccess(token=token)
    asked = _target(repo, revision, access, create_pr=create_pr)
    place = _place(Path(delta), subfolder)
    if prune and not place.is_run:
        msg = "is a delta, and prune=True removes entries of a run"
        raise ValueError(msg)
    with open_named(place.folders, base_id, access) as (local, base):
        publication = Publication(
            base=base,
            deltas=local,
            run=place.run,
            is_run=place.is_run,
            pins=place.pins,
            prune=prune,
        )
        push = _Push(
            asked,
            publication,
            access,
            message=commit_message or f"Publish {_described(place)} of {base.repo.repo}",
            private=private,
            create_pr=create_pr,
            name_private_base=name_private_base,
            dry_run=dry_run,
        )
        return push.publish()


class _Push:
    """One push, which goes on top of what others publish at the same time."""

    def __init__(
        self,
        asked: RepoId,
        publication: Publication,
        access: HubAccess,
        *,
        message: str,
        private: bool | None,
        create_pr: bool,
        name_private_base: bool,
        dry_run: bool,
    ) -> None:
        self._asked = asked
        self._publication = publication
        self._access = access
        self._message = message
        self._private = private
        self._create_pr = create_pr
        self._name_private_base = name_private_base
        self._dry_run = dry_run
        self._verified: set[Path] = set()

    def publish(self) -> PushReport:
        for _ in range(ATTEMPTS - 1):
            target = _Target(self._asked, self._access)
            try:
                return self._attempt(target)
            except MovedBranchError:
                if not (self._publication.is_mergeable and target.has_moved()):
                    raise
        return self._attempt(_Target(self._asked, self._access))

    def _attempt(self, target: _Target) -> PushReport:
        if not (self._name_private_base or target.is_private(private=self._private)):
            _require_public(self._publication.base)
        plan = self._plan(target.head)
        self._verify(plan)
        report = _report(self._asked, plan)
        if plan.is_empty:
            return replace(report, commit=target.head.repo.revision if target.head else None)
        if self._dry_run:
            return report
        seen, head = target.head, target.ready(private=self._private)
        if head != seen:
            # The plan is for the commit that the new one follows, or it would undo that.
            plan = self._plan(head)
            report = _report(self._asked, plan)
        changes = Commit(files=plan.files, deleted=plan.deleted, message=self._message)
        published = publish(
            head, self._asked.revision, changes, self._access, create_pr=self._create_pr
        )
        return replace(report, commit=published.commit, url=published.url)

    def _plan(self, head: Listing | None) -> PushPlan:
        return PushPlan(self._asked, self._publication, head, self._access)

    def _verify(self, plan: PushPlan) -> None:
        """Verify what is sent, once."""
        for delta in plan.changed:
            if delta.folder not in self._verified:
                delta.verify()
                self._verified.add(delta.folder)


def _report(asked: RepoId, plan: PushPlan) -> PushReport:
    uploads = [
        FileUpload(path=path, nbytes=len(c) if isinstance(c, bytes) else c.stat().st_size)
        for path, c in sorted(plan.files.items())
    ]
    base = plan.publication.base
    return PushReport(
        repo=asked.repo,
        branch=asked.revision,
        commit=None,
        url=None,
        base_repo=base.repo.repo,
        base_revision=str(base.repo.revision),
        base_is_public=base.is_public,
        uploads=uploads,
        deleted=sorted(plan.deleted),
        added=sorted(plan.added, key=natural_order),
        pruned=plan.pruned,
        unchanged=plan.unchanged,
        upload_bytes=sum(upload.nbytes for upload in uploads),
        tuned_bytes=plan.tuned_bytes,
        has_picture=plan.has_picture,
    )


def _described(place: _Place) -> str:
    count = len(place.folders)
    return f"a run of {count:,} sparse deltas" if place.is_run else "a sparse delta"


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


class _Place(NamedTuple):
    """What to publish, and where.

    Attributes:
        run: Folder of the repository that the deltas' folders are in.
        folders: Local folders of the deltas by their folders in ``run``.
        is_run: Whether they are the entries of a run.
        pins: Digests that the run pins.
    """

    run: str
    folders: dict[str, Path]
    is_run: bool
    pins: frozenset[str] = frozenset()


def _place(delta: Path, subfolder: str) -> _Place:
    inside = subfolder_parts(subfolder)
    if (run := place_of(delta)).is_run():
        contents = run.read()
        folders = {row.folder: delta / row.folder for row in contents.rows}
        place = _Place("/".join(inside), folders, is_run=True, pins=frozenset(contents.pins))
    else:
        name = inside.pop() if inside else ""
        place = _Place("/".join(inside), {name: delta}, is_run=False)
    for name in [*place.run.split("/"), *place.folders]:
        if name and not is_file_name(name):
            msg = "cannot be a folder's name on every system: rename it"
            raise NotFoundError(msg, file=printable(name))
    return place


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

    def has_moved(self) -> bool:
        """Whether the branch has another commit than the head."""
        now = self._list(self.asked)
        return now is not None and self.head is not None and now.repo != self.head.repo

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
        self.head = self._branch
        return self._branch
