"""What a push changes in a repository: files to send, files to remove, and the card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlsparse_store.analysis.plots.heatmap import density_map
from rlsparse_store.delta.listed_run import (
    entry_folders,
    index_path,
    listed_pins,
    listed_rows,
    read_listed_row,
    within,
)
from rlsparse_store.delta.run import read_reports
from rlsparse_store.delta.run_files import PINS_PATH, index_text, natural_order, pin_text
from rlsparse_store.errors import BaseMismatchError, MissingDependencyError, RunError
from rlsparse_store.format.file_names import folder_of_delta
from rlsparse_store.format.names import printable
from rlsparse_store.hub.remote_folder import read_small_file
from rlsparse_store.hub.repo_id import RepoId
from rlsparse_store.hub.uploads import is_unchanged
from rlsparse_store.publish.card import CARD, PICTURE, write_card
from rlsparse_store.publish.entry_folders import choose_folders
from rlsparse_store.publish.repo_layout import require_apart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.delta.run_files import IndexRow
    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.listing import Listing
    from rlsparse_store.publish.local_delta import LocalDelta
    from rlsparse_store.publish.published_base import PublishedBase

__all__ = ["Publication", "PushPlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What to publish: the entries of a run, or one delta.

    Attributes:
        base: The base that the deltas name.
        deltas: The deltas by their folders in ``run``; an empty string for ``run`` itself.
        run: Folder of the repository that the deltas' folders are in.
        is_run: Whether this is a run.
        pins: Digests that the run pins.
        prune: Whether entries that the run does not have are removed.
    """

    base: PublishedBase
    deltas: dict[str, LocalDelta]
    run: str
    is_run: bool
    pins: frozenset[str]
    prune: bool

    @property
    def is_mergeable(self) -> bool:
        """Whether it goes beside what others publish at the same time, and replaces none of it."""
        return "" not in self.deltas


class PushPlan:
    """The changes of a commit on top of the present content of a repository.

    Args:
        repo: The repository and branch.
        publication: What to publish.
        head: The present content; ``None`` if the repository does not exist.
        access: How to reach the Hub.

    Attributes:
        files: New contents by path.
        deleted: Paths of files to remove.
        changed: Deltas of which it lacks files. What it has was verified before it was sent.
        unchanged: Number of files that it has.
        added: Folders of entries that the repository lacks.
        pruned: Folders of entries that are removed.
        has_picture: Whether the card shows a heat map.

    Raises:
        OutputError: A delta would be within the folder of another.
        BaseMismatchError: The repository has deltas of another base.
        FormatError: A delta of the repository is damaged.
        HubError: The Hub failed.
    """

    def __init__(
        self, repo: RepoId, publication: Publication, head: Listing | None, access: HubAccess
    ) -> None:
        self._repo = repo
        self.publication = publication
        self._head = head
        self._access = access
        self._there = head.files if head else {}
        self._deltas = _by_delta(self._there)
        self._run = publication.run
        self._held = self._held_rows()
        self._local = self._placed()
        if head is not None:
            require_apart(RepoId(repo.repo), self._local, head)
        self.files: dict[str, Path | bytes] = {}
        self.deleted: list[str] = []
        self.changed: list[LocalDelta] = []
        self.unchanged = 0
        self._add_deltas()
        self.added = [folder for folder in self._local if folder not in self._deltas]
        self.pruned = self._prune()
        self._add_index()
        self.has_picture = PICTURE in self._there
        # Other versions of this package or of matplotlib write card and picture differently: leave
        # them alone unless a delta changed.
        if not self.is_empty or CARD not in self._there:
            self._add_card()
        self._add_pins()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to change."""
        return not self.files and not self.deleted

    @property
    def tuned_bytes(self) -> int:
        """Bytes of the tensors of the stored checkpoints."""
        return sum(delta.report.tuned_bytes for delta in self._local.values())

    def _held_rows(self) -> list[IndexRow]:
        """The entries that the repository has in the folder of the run."""
        if self._head is None or not (self.publication.is_run or self._has_index):
            return []
        try:
            return listed_rows(self._head, self._run, self._access)
        except RunError:
            # This push replaces an index that is damaged.
            head, run, access = self._head, self._run, self._access
            return [read_listed_row(head, run, f, access) for f in entry_folders(head, run)]

    @property
    def _has_index(self) -> bool:
        return index_path(self._run) in self._there

    def _placed(self) -> dict[str, LocalDelta]:
        """The local deltas by their folders in the repository."""
        deltas = self.publication.deltas
        chosen = {name: name for name in deltas}
        if self.publication.is_run:
            rows = [delta.row for delta in deltas.values()]
            chosen = choose_folders(rows, self._held, self._names_there())
        return {
            within(self._run, chosen[name]).rstrip("/"): replace(
                delta, row=replace(delta.row, folder=chosen[name])
            )
            for name, delta in deltas.items()
        }

    def _names_there(self) -> set[str]:
        """The names of files and folders in the folder of the run."""
        prefix = within(self._run, "")
        inside = (p.removeprefix(prefix) for p in self._there if p.startswith(prefix))
        return {path.partition("/")[0] for path in inside}

    def _add_deltas(self) -> None:
        for folder, delta in self._local.items():
            wanted = {within(folder, path): file for path, file in delta.files.items()}
            changed = {
                path: file
                for path, file in wanted.items()
                if not is_unchanged(file, self._there.get(path))
            }
            if changed:
                self.changed.append(delta)
            self.files |= changed
            self.unchanged += len(wanted) - len(changed)
            # Files of an earlier delta in the same folder.
            self.deleted += [path for path in self._deltas.get(folder, ()) if path not in wanted]

    def _prune(self) -> list[str]:
        """Remove the entries that the run does not have, and what it unpinned."""
        if not self.publication.prune or self._head is None:
            return []
        own = {delta.row.folder: delta.row.tuned for delta in self._local.values()}
        pinned = listed_pins(self._head, self._run)
        unpinned = (pinned & set(own.values())) - self.publication.pins
        self.deleted += [self._pin_path(digest) for digest in sorted(unpinned)]
        others = [row for row in self._held if row.folder not in own and row.tuned not in pinned]
        for row in others:
            inside = within(self._run, f"{row.folder}/")
            self.deleted += [path for path in self._there if path.startswith(inside)]
        self._held = [row for row in self._held if row not in others]
        return [within(self._run, row.folder) for row in others]

    def _rows(self) -> list[IndexRow]:
        """The entries of the run after the commit."""
        rows = {row.folder: row for row in self._held}
        rows |= {delta.row.folder: delta.row for delta in self._local.values()}
        return list(rows.values())

    def _add_index(self) -> None:
        """Bring the index up to date: of a run always, beside a single delta if there is one."""
        if not (self.publication.is_run or self._has_index) or "" in self._local:
            return
        path, text = index_path(self._run), index_text(self._rows())
        if not is_unchanged(text, self._there.get(path)):
            self.files[path] = text

    def _pin_path(self, digest: str) -> str:
        return within(self._run, f"{PINS_PATH}/{digest}")

    def _add_pins(self) -> None:
        for delta in self._local.values():
            path = self._pin_path(delta.row.tuned)
            if delta.row.tuned in self.publication.pins and path not in self._there:
                self.files[path] = pin_text(delta.row)

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
            self._old_card(),
            self._repo,
            self.publication.base,
            reports,
            self._metrics(),
            has_picture=self.has_picture,
        ).encode()
        if not is_unchanged(card, self._there.get(CARD)):
            self.files[CARD] = card

    def _reports(self) -> dict[str, DeltaReport]:
        """All deltas of the repository after the commit, which must have one base."""
        found: dict[str, DeltaReport] = {}
        if self._head is not None:
            found = read_reports(self._head, self._access, skip={*self._local, *self.pruned})
        found |= {folder: delta.report for folder, delta in self._local.items()}
        if len({report.base_digest for report in found.values()}) > 1:
            msg = "has deltas of another base: publish this one in another repository"
            raise BaseMismatchError(msg, file=printable(str(self._repo)))
        return found

    def _metrics(self) -> Mapping[str, Mapping[str, float]]:
        return {within(self._run, row.folder): row.metrics for row in self._rows()}

    def _old_card(self) -> str | None:
        if self._head is None or CARD not in self._there:
            # The first text of a new card is the trainer's own.
            return next((delta.card for delta in self._local.values() if delta.card), None)
        return read_small_file(self._head, CARD, self._access).decode(errors="replace")


def _by_delta(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files of deltas by the folders of the deltas, without the small files beside them."""
    found: dict[str, list[str]] = {}
    for path in paths:
        folder = folder_of_delta(path)
        if folder is not None:
            found.setdefault(folder, []).append(path)
    return found
