"""Encoding a run: one checkpoint after another, each stored as a delta of one base."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, encode_spans, new_delta
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.plausibility import issue_warnings, structure_warnings
from rlsparse_store.delta.resolve import as_repo_id, find_checkpoint, find_repo_id
from rlsparse_store.delta.run import RunEntry, RunReport, place_of
from rlsparse_store.delta.run_files import (
    EntryNote,
    IndexRow,
    natural_order,
    step_in_name,
    write_note,
)
from rlsparse_store.delta.run_place import require_base
from rlsparse_store.errors import CheckpointError, OutputError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.side_files import open_side_files
from rlsparse_store.files.trainer_folders import as_trainer_folder, checkpoint_names
from rlsparse_store.files.trainer_state import TrainerState, read_trainer_state
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.fingerprints import BaseHashes
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.tensor_matching import find_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.delta.run_place import RunPlace, RunWriter
    from rlsparse_store.files.side_files import SideFiles
    from rlsparse_store.pipeline.coder import SpanCoder
    from rlsparse_store.pipeline.tensor_matching import DtypePolicy

__all__ = ["Added", "RunEncoder", "encode_run", "is_new", "require_one_base"]


def encode_run(  # noqa: PLR0913 - each option is one of the command line's
    base: str | PathLike[str],
    tuned: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    cast: Literal["bf16"] | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    coder: SpanCoder | None = None,
    metrics: Mapping[str, float] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    force: bool = False,
    progress: Progress = no_progress,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> RunReport:
    """Store several checkpoints of one base, each as a delta in a folder of its own.

    Checkpoints are encoded one after another, and each delta is complete when it appears: an
    interruption loses the one in progress, and the same call then continues. A delta that exists
    is kept and its checkpoint is not read, unless the checkpoint is local and newer: a resumed run
    writes checkpoints again. Then it is encoded, and if it differs, both deltas are entries of this
    name until one is pruned. The base is hashed once.

    A delta's step and metrics are read from the ``trainer_state.json`` of its checkpoint and kept
    with it. In a folder, one process writes at a time; in object storage, several may.

    Args:
        base: The base: a Hugging Face folder, a ``.safetensors`` file or ``org/name[@revision]``.
        tuned: The tuned checkpoints, likewise, or the output folder of a trainer, which stands for
            the checkpoints in it; one may be given without a list. A delta takes the name of its
            folder, file or repository, followed by the revision if the id names one; of the step
            that its folder belongs to (``global_step_10/actor/huggingface``); or of the parts in
            which the paths differ.
        out: Folder of the run, or its URL in object storage.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a delta continues in another file.
        coder: As for :func:`encode_delta`.
        metrics: Metrics of the checkpoint by name, beside those that its trainer wrote. Only one
            checkpoint may then be given.
        include: As for :func:`encode_delta`.
        exclude: As for :func:`encode_delta`.
        force: As for :func:`encode_delta`.
        progress: Called with bytes done and bytes in all, which is an estimate until the last
            checkpoint is open.
        base_revision: Branch, tag or commit of the base on the Hub.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        All deltas of the run, kept ones included.

    Raises:
        NotFoundError: A checkpoint does not exist.
        CheckpointError: A checkpoint is broken, or is given twice, or metrics are given for
            several.
        ImplausibleError: A checkpoint is not one of this base, as names and shapes show.
        DtypeMismatchError: A dtype does not match the base's, and neither option says what to do.
        BaseMismatchError: The run has a delta of another base.
        OutputError: A delta cannot be written.
        BucketError: The object storage failed.
        RunLockedError: Another process is writing the run.
        RunError: The run's index or an entry's note is damaged.

    Warns:
        ImplausibleWarning: As for :func:`encode_delta`, of each checkpoint.

    Example:
        >>> encode_run("qwen-base", ["checkpoint-100", "checkpoint-200"], "run")  # doctest: +SKIP
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    place = place_of(out)
    tuned = [tuned] if isinstance(tuned, str | os.PathLike) else list(tuned)
    checkpoints, others = _find(tuned)
    named = _by_name(checkpoints)
    notes = _left_out(others, checkpoints)
    if metrics and len(named) != 1:
        msg = (
            f"metrics belong to one checkpoint, but {len(named)} are given: encode them one by one"
        )
        raise CheckpointError(msg, file=place.root)
    rows = require_one_base(place)
    with open_checkpoint(find_checkpoint(base, "base", access, base_revision)) as base_checkpoint:
        encoder = RunEncoder(
            base_checkpoint,
            policy,
            threads=threads,
            shard_bytes=shard_bytes,
            coder=coder,
            force=force,
        )
        held = {row.name: row for row in rows}
        _check_local(
            base_checkpoint,
            [given for name, given in named.items() if is_new(place, held.get(name), given)],
            force=force,
        )
        with place.write() as run:
            pending = {
                name: given
                for name, given in named.items()
                if is_new(place, run.current(name), given)
            }
            written: dict[str, EncodeReport] = {}
            for number, (name, given) in enumerate(pending.items()):
                part = _part_of(progress, number, len(pending))
                path = find_checkpoint(given, "tuned checkpoint", access)
                with (
                    open_checkpoint(path) as checkpoint,
                    open_side_files(checkpoint, include, exclude) as sides,
                ):
                    state = read_trainer_state(path)
                    state = state._replace(metrics={**state.metrics, **(metrics or {})})
                    added = encoder.add(run, name, checkpoint, sides, state, progress=part)
                if added is not None:
                    written[added.row.folder] = added.report
                    issue_warnings(added.report, name)
            ordered = sorted(run.rows.values(), key=lambda row: natural_order(row.folder))
    return RunReport(
        deltas=[
            RunEntry.of(row, written.get(row.folder), is_pinned=row.tuned in run.pins)
            for row in ordered
        ],
        notes=notes,
    )


class Added(NamedTuple):
    """An entry that was added to a run.

    Attributes:
        row: Its row in the index.
        report: What was stored.
    """

    row: IndexRow
    report: EncodeReport


class RunEncoder:
    """Adds checkpoints of one base to runs, one after another. The base is hashed once.

    Args:
        base: The base, open.
        policy: What to do where dtypes do not match.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a delta continues in another file.
        coder: Encodes the spans; on the CPU by default.
        force: Whether an implausible pair is encoded all the same.
    """

    def __init__(
        self,
        base: Checkpoint,
        policy: DtypePolicy,
        *,
        threads: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        coder: SpanCoder | None = None,
        force: bool = False,
    ) -> None:
        self.base = base
        self._policy = policy
        self._hashes = BaseHashes()
        self._threads = threads
        self._shard_bytes = shard_bytes
        self._coder = coder
        self._force = force

    def add(
        self,
        run: RunWriter,
        name: str,
        checkpoint: Checkpoint,
        sides: SideFiles,
        state: TrainerState,
        *,
        progress: Progress = no_progress,
        confirm: Callable[[], None] = lambda: None,
    ) -> Added | None:
        """Encode a checkpoint and list its delta as the next entry of this name.

        Args:
            run: The writer of the run.
            name: The name of the entry.
            checkpoint: The checkpoint, open.
            sides: Its small files, open.
            state: Its step and metrics.
            progress: Called with bytes done and bytes in all.
            confirm: Called before the delta gets its name; an error keeps it from being published.

        Returns:
            The entry, or ``None`` if the current entry of this name has this content.

        Raises:
            BaseMismatchError: The run has a delta of another base.
            RlsparseError: A checkpoint cannot be encoded, or the delta cannot be written.
        """
        encoder = Encoder(
            self.base, checkpoint, self._policy, self._hashes, sides=sides, force=self._force
        )
        held = run.current(name)
        noted: list[EntryNote] = []

        def finish(delta: Path) -> None:
            write_note(delta, noted[0])
            confirm()
            run.require_held()

        try:
            with run.new_entry(name) as delta:
                with new_delta(encoder, delta, self._shard_bytes, finish) as sink:
                    nbytes = encode_spans(encoder, sink, self._threads, progress, self._coder)
                    report = encoder.report(nbytes)
                    # Before the delta gets its name: a run has one base.
                    require_base(run.root, name, report.base_digest, list(run.rows.values()))
                    _require_change(held, report)
                    noted.append(_note(run, name, state, report.tuned_digest))
                row = run.add(delta, noted[0], report)
        except _UnchangedError:
            return None
        if row is None:
            return None
        if held is not None:
            note = (
                f"another entry of the name {printable(name)}, for the checkpoint changed; "
                f"the one before it stays in {printable(held.folder)} until it is pruned"
            )
            report = replace(report, notes=[*report.notes, note])
        return Added(row, report)


def _note(run: RunWriter, name: str, state: TrainerState, tuned: str) -> EntryNote:
    step = step_in_name(name) if state.step is None else state.step
    before = run.before(step, name)
    return EntryNote(
        name=name,
        tuned=tuned,
        parent=None if before is None else before.tuned,
        step=step,
        metrics=state.metrics,
    )


class _UnchangedError(Exception):
    """A checkpoint that is newer than its delta has the same content. Ends the writing."""


def _require_change(held: IndexRow | None, report: EncodeReport) -> None:
    if held is not None and held.tuned == report.tuned_digest:
        raise _UnchangedError


def is_new(run: RunPlace, held: IndexRow | None, place: str | PathLike[str]) -> bool:
    """Whether a checkpoint has to be encoded: it has no entry, or is local and newer than that.

    Args:
        run: The place of the run.
        held: The current entry of the checkpoint's name.
        place: The checkpoint.
    """
    if held is None:
        return True
    if not _is_local(place):
        return False
    return _last_written(Path(place)) > run.last_written(held.folder)


def _find(
    tuned: Sequence[str | PathLike[str]],
) -> tuple[list[str | PathLike[str]], dict[Path, str]]:
    """The checkpoints, also those of trainers' folders, and why others there are not stored."""
    checkpoints: list[str | PathLike[str]] = []
    others: dict[Path, str] = {}
    for place in tuned:
        trainer = as_trainer_folder(Path(place)) if _is_local(place) else None
        checkpoints += trainer.checkpoints if trainer else [place]
        others |= trainer.others if trainer else {}
    return checkpoints, others


def _by_name(checkpoints: Sequence[str | PathLike[str]]) -> dict[str, str | PathLike[str]]:
    """The checkpoints by the names of their deltas."""
    local: list[str | PathLike[str]] = []
    named: dict[str, str | PathLike[str]] = {}
    for place in checkpoints:
        if _is_local(place):
            local.append(place)
            continue
        name = _remote_name(place)
        if name in named:
            raise CheckpointError("is given twice", file=printable(str(place)))
        named[name] = place
    for name, path in zip(checkpoint_names(local), local, strict=True):
        if name in named:
            msg = f"a remote one is named {printable(name)} too; store it in a run of its own"
            raise CheckpointError(msg, file=printable(str(path)))
        named[name] = path
    # In the order of training, so that each finds its parent.
    return dict(sorted(named.items(), key=lambda item: natural_order(item[0])))


def _left_out(others: Mapping[Path, str], checkpoints: Sequence[str | PathLike[str]]) -> list[str]:
    """What the folders of trainers hold besides checkpoints: one note for each reason."""
    given = {Path(place).absolute() for place in checkpoints}
    by_reason: defaultdict[str, list[Path]] = defaultdict(list)
    for path, reason in others.items():
        if path.absolute() not in given:
            by_reason[reason].append(path.absolute())
    return [
        f"not stored: {printable(str(paths[0]))} {reason}{_and_more(len(paths) - 1)}"
        for reason, paths in by_reason.items()
    ]


def _and_more(number: int) -> str:
    return f" (and {number} more like it)" if number else ""


def _is_local(place: str | PathLike[str]) -> bool:
    return parse_bucket_url(place) is None and as_repo_id(place) is None


def _remote_name(place: str | PathLike[str]) -> str:
    """The name of a checkpoint in a bucket or on the Hub."""
    repo = find_repo_id(place)
    if repo is None:
        return str(place).rstrip("/").rpartition("/")[2]
    name = repo.repo.rpartition("/")[2]
    return name if repo.revision is None else f"{name}-{repo.revision.replace('/', '-')}"


def _check_local(base: Checkpoint, places: Iterable[str | PathLike[str]], *, force: bool) -> None:
    """Look at each local checkpoint once, so that a wrong one is found before any is encoded."""
    for place in places:
        if _is_local(place):
            with open_checkpoint(find_checkpoint(place, "tuned checkpoint", HubAccess())) as tuned:
                structure_warnings(base, tuned, find_sources(base, tuned), force=force)


def require_one_base(run: RunPlace) -> list[IndexRow]:
    """The entries of a run to which deltas are added, all of one base; none of a new run.

    Args:
        run: The place of the run.

    Raises:
        OutputError: It is a delta.
        BaseMismatchError: The entries have different bases.
        RunError: The index or an entry's note is damaged.
    """
    if run.is_delta():
        msg = (
            "is a delta, not a run; if it stores the run's first checkpoint, move it into a folder "
            "of that name, and start runs with --run"
        )
        raise OutputError(msg, file=run.root)
    rows = run.read().rows
    for row in rows:
        require_base(run.root, row.folder, row.base, rows)
    return rows


def _last_written(path: Path) -> float:
    """Modification time of a file, or of a folder's newest safetensors file; 0 without one."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _part_of(progress: Progress, number: int, checkpoints: int) -> Progress:
    """The progress of one checkpoint of several, which are taken to be of equal size."""

    def report(done: int, total: int) -> None:
        progress(number * total + done, checkpoints * total)

    return report
