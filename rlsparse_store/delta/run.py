"""A run: the deltas of several checkpoints of one training run, in one folder."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, new_delta
from rlsparse_store.delta.encode_batch import encode_together
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.inspect import inspect_delta, report_delta
from rlsparse_store.delta.resolve import as_repo_id, delta_folders, find_checkpoint, read_listed
from rlsparse_store.errors import BaseMismatchError, CheckpointError, NotFoundError, OutputError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.calls import map_concurrently
from rlsparse_store.hub.listing import Listing, list_repo
from rlsparse_store.hub.snapshots import cached_snapshot
from rlsparse_store.pipeline.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.files.delta_writer import ChunkSink
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.pipeline.tensor_matching import DtypePolicy

__all__ = [
    "RunEntry",
    "RunReport",
    "delta_names",
    "encode_run",
    "inspect_run",
    "is_run",
    "natural_order",
    "read_reports",
]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form."""

MOST_TOGETHER: Final = 16
"""Checkpoints encoded at a time: what is lost if the process is killed, and the number of times
that a longer run reads the base."""

MOST_FILES: Final = 400
"""Files of checkpoints open at a time: processes may usually open 1024."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One delta of a run.

    Attributes:
        name: Its folder within the run's: the name of the checkpoint.
        elements: Words of the tuned checkpoint.
        changed: Words that differ from their source's.
        density: changed / elements.
        delta_bytes: Bytes of all files of the format.
        bits_per_changed: 8 * delta_bytes / changed, or ``None`` if nothing changed.
        tuned_bytes: Bytes of the tuned checkpoint's tensors.
        base_digest: State digest of the base.
        tuned_digest: State digest of the tuned checkpoint.
        is_new: Whether it was written just now, and not found.
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

    @classmethod
    def of(cls, name: str, report: DeltaReport, *, is_new: bool) -> RunEntry:
        """The summary of a delta's report."""
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
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The deltas of a run, in natural order of their names."""

    deltas: list[RunEntry]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def is_run(run: str | Path, access: HubAccess | None = None) -> bool:
    """Whether a folder, or a repository on the Hub, holds deltas, and is none itself.

    Args:
        run: The folder, or ``org/name[@revision]``.
        access: How to reach the Hub.
    """
    access = access or HubAccess()
    repo = as_repo_id(run)
    if repo is not None and not access.is_offline:
        found = delta_folders(list_repo(repo, "delta", access))
        return bool(found) and "" not in found
    path = _local(run, access)
    return not _is_delta(path) and path.is_dir() and any(map(_is_delta, path.iterdir()))


def _local(run: str | Path, access: HubAccess) -> Path:
    """A run's folder: where it lies, or, offline, what the cache has of its repository."""
    repo = as_repo_id(run)
    cached = cached_snapshot(repo, "delta", access) if repo is not None else None
    return Path(run) if cached is None else cached.path


def _is_delta(path: Path) -> bool:
    return (path / DELTA_FOLDER).is_dir() and not path.name.startswith(".")


def inspect_run(run: str | Path, *, token: str | bool | None = None) -> RunReport:
    """List the deltas of a run. Needs no base and decodes nothing.

    Args:
        run: Folder of the run, or ``org/name[@revision]`` on the Hub.
        token: Access token for the Hub; by default the one that is stored.

    Raises:
        NotFoundError: It holds no deltas.
        FormatError: A delta is damaged.

    Example:
        >>> [d.name for d in inspect_run("run").deltas]  # doctest: +SKIP
        ['checkpoint-100', 'checkpoint-200']
    """
    access = HubAccess(token=token)
    repo = as_repo_id(run)
    if repo is not None and not access.is_offline:
        reports = read_reports(list_repo(repo, "delta", access), access)
        reports.pop("", None)
    else:
        path = _local(run, access)
        names = [] if _is_delta(path) else delta_names(path)
        reports = {name: inspect_delta(path / name) for name in names}
    if not reports:
        msg = "holds no deltas"
        raise NotFoundError(msg, file=printable(str(run)))
    ordered = sorted(reports, key=natural_order)
    return RunReport(deltas=[RunEntry.of(name, reports[name], is_new=False) for name in ordered])


def read_reports(
    listing: Listing, access: HubAccess, *, but: Collection[str] = ()
) -> dict[str, DeltaReport]:
    """What each delta of a repository holds, by its folder; chunks are not read.

    Args:
        listing: The repository.
        access: How to reach the Hub.
        but: Folders of deltas to leave out.

    Raises:
        FormatError: A delta is damaged.
        HubError: The Hub failed.
    """

    def read(folder: str) -> tuple[str, DeltaReport]:
        with read_listed(listing, folder, access) as reader:
            return folder, report_delta(reader)

    return dict(map_concurrently(read, [f for f in delta_folders(listing) if f not in but]))


def delta_names(run: Path) -> list[str]:
    """The names of the deltas in a local run's folder, in natural order."""
    found = (path.name for path in run.iterdir() if _is_delta(path)) if run.is_dir() else ()
    return sorted(found, key=natural_order)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts ``step-9`` before ``step-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def encode_run(  # noqa: PLR0913 - each option is one of the command line's
    base: str | Path,
    tuned: Sequence[str | Path],
    out: str | Path,
    *,
    cast: str | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
    coder: SpanCoder | None = None,
) -> RunReport:
    """Store several checkpoints of one base, each as a delta in a folder of its own name.

    The base is read once for every 16 checkpoints. A delta that is there already is kept and its
    checkpoint not read, so that a run can go on after it was interrupted and grow as training does;
    to have a delta made again, remove its folder.

    Args:
        base: The base: a Hugging Face folder, a ``.safetensors`` file or ``org/name[@revision]``.
        tuned: The tuned checkpoints: folders or files.
        out: Folder of the run.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a delta begins a new file.
        progress: Called with bytes done and bytes in all.
        coder: As for :func:`encode_delta`.

    Returns:
        All deltas of the run, those that were there included.

    Raises:
        NotFoundError: A checkpoint is not there.
        CheckpointError: A checkpoint is broken, or two have the same name.
        DtypeMismatchError: A dtype does not fit, and neither option says what to do.
        BaseMismatchError: A delta that was there already was made against another base.
        OutputError: A delta cannot be written.

    Example:
        >>> encode_run("qwen-base", ["checkpoint-100", "checkpoint-200"], "run")  # doctest: +SKIP
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    out = Path(out)
    if _is_delta(out):
        msg = (
            "is a delta, not the folder of a run; if it is of the run's first checkpoint, move it "
            "into a folder of that name, and make runs with --run"
        )
        raise OutputError(msg, file=out)
    named = _by_name(tuned)
    found = inspect_run(out).deltas if is_run(out) else []
    if found:
        _require_base(out, found, found[0].base_digest)
    _warn_of_newer(out, named)
    entries = {entry.name: entry for entry in found}
    pending = [name for name in named if name not in entries]
    with open_checkpoint(find_checkpoint(base, "base", HubAccess())) as base_checkpoint:
        group = _Group(base_checkpoint, policy, out, found, shard_bytes, coder)
        parts = _Parts(progress, len(pending))
        while pending:
            reports = group.encode(named, pending, threads, parts)
            for name, report in reports.items():
                entries[name] = RunEntry.of(name, report, is_new=True)
            pending = pending[len(reports) :]
    ordered = sorted(entries.values(), key=lambda entry: natural_order(entry.name))
    return RunReport(deltas=ordered)


def _by_name(tuned: Sequence[str | Path]) -> dict[str, Path]:
    """The checkpoints by the names of their deltas."""
    named: dict[str, Path] = {}
    for given in tuned:
        path = Path(os.path.abspath(given))  # noqa: PTH100 - resolve() would follow links
        name = path.stem if path.is_file() else path.name
        if name in named:
            msg = f"two checkpoints are named {printable(name)}; store them in different runs"
            raise CheckpointError(msg, file=path)
        if not name or name.startswith("."):
            msg = "its name cannot be that of a delta; rename it"
            raise CheckpointError(msg, file=path)
        named[name] = path
    return named


def _require_base(out: Path, found: list[RunEntry], digest: str) -> None:
    """Require that the deltas that were there have the base with a state digest."""
    for entry in found:
        if entry.base_digest != digest:
            msg = "was made against another base; remove it, or choose another folder for this run"
            raise BaseMismatchError(msg, file=out / entry.name)


def _warn_of_newer(out: Path, named: dict[str, Path]) -> None:
    """Warn of checkpoints that were written after their deltas, which are kept."""
    for name, path in named.items():
        made = _written(out / name / DELTA_FOLDER)
        if made and _written(path) > made:
            msg = (
                f"{out / name}: kept, though {printable(str(path))} was written after it; "
                "remove its folder to have it made again"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=3)


def _written(path: Path) -> float:
    """When a file, or the newest safetensors file of a folder, was written; 0 without one."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


class _Parts:
    """Progress of one group of checkpoints after the other.

    What the checkpoints of later groups hold is not known yet; they are taken to be alike.
    """

    def __init__(self, progress: Progress, checkpoints: int) -> None:
        self._progress = progress
        self._checkpoints = checkpoints
        self._done = 0

    def next(self, checkpoints: int) -> Progress:
        """Progress of the next group, which has so many checkpoints."""
        before = self._done
        self._done += checkpoints

        def report(done: int, total: int) -> None:
            whole = total * self._checkpoints // checkpoints
            self._progress(before * total // checkpoints + done, whole)

        return report


class _Group:
    """Encodes as many checkpoints together as may be open at a time."""

    def __init__(
        self,
        base: Checkpoint,
        policy: DtypePolicy,
        out: Path,
        found: list[RunEntry],
        shard_bytes: int,
        coder: SpanCoder | None,
    ) -> None:
        self._coder = coder
        self._base = base
        self._policy = policy
        self._out = out
        self._found = found
        self._shard_bytes = shard_bytes

    def encode(
        self, named: dict[str, Path], pending: list[str], threads: int | None, parts: _Parts
    ) -> dict[str, DeltaReport]:
        """Encode the first of the pending checkpoints, and report on those."""
        with ExitStack() as checkpoints, ExitStack() as deltas:
            encoders: dict[str, Encoder] = {}
            files = len(self._base.files)
            for name in pending[:MOST_TOGETHER]:
                checkpoint = open_checkpoint(named[name])
                files += len(checkpoint.files)
                if encoders and files > MOST_FILES:
                    checkpoint.close()
                    break
                checkpoints.enter_context(checkpoint)
                encoders[name] = Encoder(self._base, checkpoint, self._policy)
            encodings: list[tuple[Encoder, ChunkSink]] = [
                (
                    encoder,
                    deltas.enter_context(new_delta(encoder, self._out / name, self._shard_bytes)),
                )
                for name, encoder in encoders.items()
            ]
            told = parts.next(len(encodings))
            sizes = encode_together(self._base, encodings, threads, told, self._coder)
            reports: dict[str, DeltaReport] = {
                name: encoder.report(size)
                for (name, encoder), size in zip(encoders.items(), sizes, strict=True)
            }
            # Before the deltas are given their names: a run has one base, or it is not touched.
            for report in reports.values():
                _require_base(self._out, self._found, report.base_digest)
            return reports
