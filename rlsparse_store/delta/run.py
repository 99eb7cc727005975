"""A run: the deltas of several checkpoints of one training run, side by side in one folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.entry_choice import choose_entry
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.inspect import report_delta
from rlsparse_store.delta.listed_run import listed_pins, listed_rows, run_folders, within
from rlsparse_store.delta.resolve import delta_folders, find_repo_id, read_listed
from rlsparse_store.delta.run_bucket import RunBucket
from rlsparse_store.delta.run_files import IndexRow, RunContents, natural_order
from rlsparse_store.delta.run_folder import RunFolder
from rlsparse_store.delta.run_place import not_a_run
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.calls import map_concurrently
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.snapshots import cached_snapshot

if TYPE_CHECKING:
    from collections.abc import Collection
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.delta.report import DeltaReport, EncodeReport, WholeTensor
    from rlsparse_store.delta.run_place import RepairReport, RunPlace

__all__ = [
    "FoundEntry",
    "RunEntry",
    "RunReport",
    "find_entry",
    "find_run_report",
    "inspect_run",
    "is_run",
    "place_of",
    "read_reports",
    "repair_run",
]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunEntry(SummaryRepr):
    """One delta of a run.

    Attributes:
        name: The name of the checkpoint, a label.
        folder: Its folder within the run, which differs from the name if the name came again.
        step: Its optimizer step, if known.
        parent: Tuned digest of the entry before it in training, if known.
        metrics: Its metrics by name.
        is_pinned: Whether pruning keeps it.
        elements: Elements of the tuned checkpoint.
        changed: Elements that differ from their source's.
        density: changed / elements.
        delta_bytes: Bytes of the delta's files.
        bits_per_changed: 8 * delta_bytes / changed, or ``None`` if nothing changed.
        tuned_bytes: Bytes of the tuned checkpoint's tensors.
        base_digest: State digest of the base.
        tuned_digest: State digest of the tuned checkpoint.
        is_new: Whether this call wrote it. The fields that follow are empty otherwise.
        warnings: As for :class:`EncodeReport`.
        notes: As for :class:`EncodeReport`.
        whole: As for :class:`EncodeReport`.
        removed: Base tensors that the tuned checkpoint does not have.
        carried_files: As for :class:`EncodeReport`.
        skipped_files: As for :class:`EncodeReport`.
    """

    name: str
    folder: str
    step: int | None
    parent: str | None
    metrics: dict[str, float]
    is_pinned: bool
    elements: int
    changed: int
    density: float
    delta_bytes: int
    bits_per_changed: float | None
    tuned_bytes: int
    base_digest: str
    tuned_digest: str
    is_new: bool
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whole: list[WholeTensor] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    carried_files: list[str] = field(default_factory=list)
    skipped_files: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, row: IndexRow, report: EncodeReport | None = None, *, is_pinned: bool = False
    ) -> RunEntry:
        """An entry by its row in the index, and the report of the call that wrote it."""
        return cls(
            name=row.name,
            folder=row.folder,
            step=row.step,
            parent=row.parent,
            metrics=row.metrics,
            is_pinned=is_pinned,
            elements=row.elements,
            changed=row.changed,
            density=row.changed / row.elements if row.elements else 0.0,
            delta_bytes=row.delta_bytes,
            bits_per_changed=8 * row.delta_bytes / row.changed if row.changed else None,
            tuned_bytes=row.tuned_bytes,
            base_digest=row.base,
            tuned_digest=row.tuned,
            is_new=report is not None,
            warnings=report.warnings if report else [],
            notes=report.notes if report else [],
            whole=report.whole if report else [],
            removed=report.removed if report else [],
            carried_files=report.carried_files if report else [],
            skipped_files=report.skipped_files if report else [],
        )

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "density", self.density
        yield "changed", self.changed
        yield "delta_bytes", self.delta_bytes
        yield "is_new", self.is_new


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunReport(SummaryRepr):
    """The deltas of a run.

    Attributes:
        deltas: One entry per delta, in natural order of their names.
        notes: What was found in the folder of a trainer and not stored, and why.
    """

    deltas: list[RunEntry]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        warnings = [f"{entry.name}: {text}" for entry in self.deltas for text in entry.warnings]
        return {"schema_version": SCHEMA_VERSION, "warnings": warnings, **asdict(self)}

    def _summary(self) -> Rows:
        yield "deltas", len(self.deltas)
        yield "new", sum(entry.is_new for entry in self.deltas)
        yield "delta_bytes", sum(entry.delta_bytes for entry in self.deltas)
        yield "tuned_bytes", sum(entry.tuned_bytes for entry in self.deltas)
        yield from ((f"density[{entry.name}]", entry.density) for entry in self.deltas)


def place_of(run: str | PathLike[str]) -> RunPlace:
    """The place of a run.

    Args:
        run: Folder of the run, or its URL in object storage.
    """
    url = parse_bucket_url(run)
    return RunFolder(Path(run)) if url is None else RunBucket(url)


def is_run(
    run: str | PathLike[str], access: HubAccess | None = None, revision: str | None = None
) -> bool:
    """Whether a folder, or a repository on the Hub, holds deltas but is not itself one.

    Args:
        run: The folder, its URL in object storage, or ``org/name[@revision]``.
        access: How to reach the Hub.
        revision: Its revision on the Hub, if the id does not name one.
    """
    access = access or HubAccess()
    repo = find_repo_id(run, revision)
    if repo is not None and not access.is_offline:
        found = delta_folders(list_repo(repo, "delta", access))
        return bool(found) and "" not in found
    return _place(run, access, revision).is_run()


def _place(run: str | PathLike[str], access: HubAccess, revision: str | None = None) -> RunPlace:
    """The place of a run; offline, what the cache has of its repository."""
    repo = find_repo_id(run, revision)
    cached = cached_snapshot(repo, "delta", access) if repo is not None else None
    return place_of(run if cached is None else cached.path)


def inspect_run(
    run: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> RunReport:
    """List the deltas of a run. Needs no base and decodes nothing.

    Args:
        run: Folder of the run, its URL in object storage, or ``org/name[@revision]`` on the Hub.
        revision: Branch, tag or commit of the run on the Hub, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: There is no such run, or it holds no deltas.
        FormatError: A delta is damaged.

    Example:
        >>> [d.name for d in inspect_run("run").deltas]  # doctest: +SKIP
        ['checkpoint-100', 'checkpoint-200']
    """
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    report = find_run_report(run, access, revision)
    if report is None:
        raise not_a_run(run)
    return report


def find_run_report(
    run: str | PathLike[str], access: HubAccess, revision: str | None
) -> RunReport | None:
    """The deltas of a run, or ``None`` if it is none.

    Raises:
        FormatError: A delta is damaged.
        RunError: The index is damaged, or names an entry that is gone.
    """
    repo = find_repo_id(run, revision)
    if repo is not None and not access.is_offline:
        listing = list_repo(repo, "delta", access)
        found = delta_folders(listing)
        contents = _listed(listing, access) if found and "" not in found else None
    else:
        contents = _place(run, access, revision).find()
    return None if contents is None else _report(contents)


def _listed(listing: Listing, access: HubAccess) -> RunContents:
    """The entries of all runs in a repository, by their folders in it, and what is pinned."""
    rows: list[IndexRow] = []
    pinned: set[str] = set()
    for run in run_folders(listing):
        found = listed_rows(listing, run, access)
        rows += [replace(row, folder=within(run, row.folder)) for row in found]
        pinned |= listed_pins(listing, run)
    return RunContents(rows, pinned)


def _report(contents: RunContents) -> RunReport:
    ordered = sorted(contents.rows, key=lambda row: natural_order(row.folder))
    entries = [RunEntry.of(row, is_pinned=row.tuned in contents.pins) for row in ordered]
    return RunReport(deltas=entries)


def repair_run(run: str | PathLike[str]) -> RepairReport:
    """Make the index of a run again from its entries. Removes nothing.

    Args:
        run: Folder of the run, or its URL in object storage.

    Raises:
        NotFoundError: There is no such run, or it holds no deltas.
        RunLockedError: Another process is writing.
        RunError: An entry's note is damaged.
        FormatError: A delta is damaged.
        BucketError: The object storage failed.

    Example:
        >>> repair_run("run").added  # doctest: +SKIP
        ['checkpoint-300']
    """
    return place_of(run).repair()


class FoundEntry(NamedTuple):
    """An entry of a run.

    Attributes:
        folder: Its folder in the run.
        delta: The path or the URL of its delta.
    """

    folder: str
    delta: Path | str


def find_entry(run: str | PathLike[str], name: str) -> FoundEntry:
    """Find an entry of a run.

    Args:
        run: Folder of the run, or its URL in object storage.
        name: Its folder, its name (then the current one of this name), or its tuned digest.

    Raises:
        NotFoundError: There is no such run or entry.
        RunError: The index is damaged.
    """
    place = place_of(run)
    folder = choose_entry(place.read().rows, name, place.root).folder
    return FoundEntry(folder, place.entry(folder))


def read_reports(
    listing: Listing, access: HubAccess, *, skip: Collection[str] = ()
) -> dict[str, DeltaReport]:
    """Report on every delta of a repository, by folder. Chunks are not read.

    Args:
        listing: The repository.
        access: How to reach the Hub.
        skip: Folders of deltas to leave out.

    Raises:
        FormatError: A delta is damaged.
        HubError: The Hub failed.
    """

    def read(folder: str) -> tuple[str, DeltaReport]:
        with read_listed(listing, folder, access) as reader:
            return folder, report_delta(reader)

    folders = [folder for folder in delta_folders(listing) if folder not in skip]
    return dict(map_concurrently(read, folders))
