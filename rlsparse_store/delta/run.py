"""A run: the deltas of several checkpoints of one training run, side by side in one folder."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.inspect import inspect_delta, report_delta
from rlsparse_store.delta.report import EncodeReport, WholeTensor
from rlsparse_store.delta.resolve import as_repo_id, delta_folders, read_listed
from rlsparse_store.errors import NotFoundError
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.calls import map_concurrently
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.snapshots import cached_snapshot

if TYPE_CHECKING:
    from collections.abc import Collection
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.delta.report import DeltaReport

__all__ = [
    "RunEntry",
    "RunReport",
    "delta_names",
    "inspect_run",
    "is_delta",
    "is_run",
    "natural_order",
    "read_reports",
]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunEntry(SummaryRepr):
    """One delta of a run.

    Attributes:
        name: Its folder within the run: the name of the checkpoint.
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
    def of(cls, name: str, report: DeltaReport, *, is_new: bool) -> RunEntry:
        """The summary of a delta's report."""
        stored = report if isinstance(report, EncodeReport) else None
        return cls(
            name=name,
            elements=report.elements,
            changed=report.changed,
            density=report.density,
            delta_bytes=report.delta_bytes,
            bits_per_changed=report.bits_per_changed,
            tuned_bytes=report.tuned_bytes,
            base_digest=report.base_digest,
            tuned_digest=report.tuned_digest,
            is_new=is_new,
            warnings=stored.warnings if stored else [],
            notes=stored.notes if stored else [],
            whole=stored.whole if stored else [],
            removed=report.removed,
            carried_files=stored.carried_files if stored else [],
            skipped_files=stored.skipped_files if stored else [],
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
    """

    deltas: list[RunEntry]

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


def is_run(
    run: str | PathLike[str], access: HubAccess | None = None, revision: str | None = None
) -> bool:
    """Whether a folder, or a repository on the Hub, holds deltas but is not itself one.

    Args:
        run: The folder, or ``org/name[@revision]``.
        access: How to reach the Hub.
        revision: Its revision on the Hub, if the id does not name one.
    """
    access = access or HubAccess()
    repo = as_repo_id(run, revision)
    if repo is not None and not access.is_offline:
        found = delta_folders(list_repo(repo, "delta", access))
        return bool(found) and "" not in found
    path = _local(run, access, revision)
    return not is_delta(path) and path.is_dir() and any(map(is_delta, path.iterdir()))


def _local(run: str | PathLike[str], access: HubAccess, revision: str | None = None) -> Path:
    """A run's folder; offline, what the cache has of its repository."""
    repo = as_repo_id(run, revision)
    cached = cached_snapshot(repo, "delta", access) if repo is not None else None
    return Path(run) if cached is None else cached.path


def is_delta(path: Path) -> bool:
    """Whether a folder holds a delta. Temporary folders of a writer do not count."""
    return (path / DELTA_FOLDER).is_dir() and not path.name.startswith(".")


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
        run: Folder of the run, or ``org/name[@revision]`` on the Hub.
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
    repo = as_repo_id(run, revision)
    if repo is not None and not access.is_offline:
        reports = read_reports(list_repo(repo, "delta", access), access)
        reports.pop("", None)
    else:
        path = _local(run, access, revision)
        names = [] if is_delta(path) else delta_names(path)
        reports = {name: inspect_delta(path / name) for name in names}
    if not reports:
        msg = "holds no deltas"
        raise NotFoundError(msg, file=printable(str(run)))
    ordered = sorted(reports, key=natural_order)
    return RunReport(deltas=[RunEntry.of(name, reports[name], is_new=False) for name in ordered])


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


def delta_names(run: Path) -> list[str]:
    """The names of the deltas in a local run's folder, in natural order."""
    found = (path.name for path in run.iterdir() if is_delta(path)) if run.is_dir() else ()
    return sorted(found, key=natural_order)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts ``step-9`` before ``step-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [_number(part) if part.isdecimal() else (1, 0, part) for part in parts]


def _number(digits: str) -> tuple[int, int, str]:
    """A key that sorts numbers by value. Python refuses to convert very long ones."""
    digits = digits.lstrip("0")
    return (0, len(digits), digits)
