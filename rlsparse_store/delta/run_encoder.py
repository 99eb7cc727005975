"""Encoding a run: one checkpoint after another, each stored as a delta of one base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, encode_spans, new_delta
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.plausibility import issue_warnings, structure_warnings
from rlsparse_store.delta.resolve import as_repo_id, find_checkpoint
from rlsparse_store.delta.run import (
    RunEntry,
    RunReport,
    inspect_run,
    is_delta,
    is_run,
    natural_order,
)
from rlsparse_store.errors import BaseMismatchError, CheckpointError, OutputError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.side_files import open_side_files
from rlsparse_store.files.trainer_folders import checkpoint_names, find_checkpoints
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.fingerprints import BaseHashes
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.tensor_matching import find_sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

    from rlsparse_store.hub.repo_id import RepoId
    from rlsparse_store.pipeline.coder import SpanCoder

__all__ = ["encode_run"]


def encode_run(  # noqa: PLR0913 - each option is one of the command line's
    base: str | PathLike[str],
    tuned: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    cast: Literal["bf16"] | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    coder: SpanCoder | None = None,
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
    is kept and its checkpoint is not read; to encode it again, remove its folder. The base is
    hashed once.

    Args:
        base: The base: a Hugging Face folder, a ``.safetensors`` file or ``org/name[@revision]``.
        tuned: The tuned checkpoints, likewise, or the output folder of a trainer, which stands for
            the checkpoints in it. A delta takes the name of its folder, file or repository,
            followed by the revision if the id names one; of the step that its folder belongs to
            (``global_step_10/actor/huggingface``); or of the parts in which the paths differ.
        out: Folder of the run.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a delta continues in another file.
        coder: As for :func:`encode_delta`.
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
        CheckpointError: A checkpoint is broken, or is given twice.
        ImplausibleError: A checkpoint is not one of this base, as names and shapes show.
        DtypeMismatchError: A dtype does not match the base's, and neither option says what to do.
        BaseMismatchError: The run has a delta of another base.
        OutputError: A delta cannot be written.

    Warns:
        ImplausibleWarning: As for :func:`encode_delta`, of each checkpoint.

    Example:
        >>> encode_run("qwen-base", ["checkpoint-100", "checkpoint-200"], "run")  # doctest: +SKIP
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    out = Path(out)
    if is_delta(out):
        msg = (
            "is a delta, not a run; if it stores the run's first checkpoint, move it into a folder "
            "of that name, and start runs with --run"
        )
        raise OutputError(msg, file=out)
    named = _by_name(tuned)
    found = inspect_run(out).deltas if is_run(out) else []
    for entry in found:
        _require_base(out, entry.name, entry.base_digest, found)
    _warn_of_newer(out, named)
    entries = {entry.name: entry for entry in found}
    pending = {name: place for name, place in named.items() if name not in entries}
    hashes = BaseHashes()
    with open_checkpoint(find_checkpoint(base, "base", access, base_revision)) as base_checkpoint:
        _check_local(base_checkpoint, pending.values(), force=force)
        for number, (name, place) in enumerate(pending.items()):
            part = _part_of(progress, number, len(pending))
            with (
                open_checkpoint(find_checkpoint(place, "tuned checkpoint", access)) as checkpoint,
                open_side_files(checkpoint, include, exclude) as sides,
            ):
                encoder = Encoder(
                    base_checkpoint, checkpoint, policy, hashes, sides=sides, force=force
                )
                with new_delta(encoder, out / name, shard_bytes) as sink:
                    report = encoder.report(encode_spans(encoder, sink, threads, part, coder))
                    # Before the delta gets its name: a run has one base.
                    _require_base(out, name, report.base_digest, found)
            entries[name] = RunEntry.of(name, report, is_new=True)
            issue_warnings(report, name)
    ordered = sorted(entries.values(), key=lambda entry: natural_order(entry.name))
    return RunReport(deltas=ordered)


def _by_name(tuned: Sequence[str | PathLike[str]]) -> dict[str, str | PathLike[str]]:
    """The checkpoints by the names of their deltas."""
    local: list[str | PathLike[str]] = []
    named: dict[str, str | PathLike[str]] = {}
    for place in tuned:
        repo = as_repo_id(place)
        if repo is None:
            local += find_checkpoints(Path(place)) or [place]
        elif _repo_name(repo) in named:
            raise CheckpointError("is given twice", file=printable(str(place)))
        else:
            named[_repo_name(repo)] = place
    for name, path in zip(checkpoint_names(local), local, strict=True):
        if name in named:
            msg = f"a repository is named {printable(name)} too; store it in a run of its own"
            raise CheckpointError(msg, file=printable(str(path)))
        named[name] = path
    return named


def _repo_name(repo: RepoId) -> str:
    name = repo.repo.rpartition("/")[2]
    return name if repo.revision is None else f"{name}-{repo.revision.replace('/', '-')}"


def _check_local(base: Checkpoint, places: Iterable[str | PathLike[str]], *, force: bool) -> None:
    """Look at each local checkpoint once, so that a wrong one is found before any is encoded."""
    for place in places:
        if as_repo_id(place) is None:
            with open_checkpoint(find_checkpoint(place, "tuned checkpoint", HubAccess())) as tuned:
                structure_warnings(base, tuned, find_sources(base, tuned), force=force)


def _require_base(out: Path, name: str, digest: str, found: Sequence[RunEntry]) -> None:
    """Require that a delta of a run has the base of those found there."""
    if found and digest != found[0].base_digest:
        msg = "was made against another base; remove it, or choose another folder for this run"
        raise BaseMismatchError(msg, file=out / name)


def _warn_of_newer(out: Path, named: dict[str, str | PathLike[str]]) -> None:
    """Warn of local checkpoints that are newer than their deltas, which are kept."""
    for name, place in named.items():
        encoded = _last_written(out / name / DELTA_FOLDER)
        if encoded and _last_written(Path(place)) > encoded:
            msg = (
                f"{out / name}: kept, although {printable(str(place))} is newer; to encode it "
                "again, remove the delta's folder"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=3)


def _last_written(path: Path) -> float:
    """Modification time of a file, or of a folder's newest safetensors file; 0 without one."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _part_of(progress: Progress, number: int, checkpoints: int) -> Progress:
    """The progress of one checkpoint of several, which are taken to be of equal size."""

    def report(done: int, total: int) -> None:
        progress(number * total + done, checkpoints * total)

    return report
