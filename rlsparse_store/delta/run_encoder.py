"""Encoding a run: one checkpoint after another, each stored as a delta of one base."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, encode_spans, new_delta
from rlsparse_store.delta.encoder import Encoder
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
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.fingerprints import BaseHashes
from rlsparse_store.pipeline.progress import Progress, no_progress

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
        tuned: The tuned checkpoints, likewise. A delta takes the name of its folder, file or
            repository, followed by the revision if the id names one.
        out: Folder of the run.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a delta continues in another file.
        coder: As for :func:`encode_delta`.
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
        CheckpointError: A checkpoint is broken, or two have the same name.
        DtypeMismatchError: A dtype does not match the base's, and neither option says what to do.
        BaseMismatchError: The run has a delta of another base.
        OutputError: A delta cannot be written.

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
        _require_base(out, entry, found[0].base_digest)
    _warn_of_newer(out, named)
    entries = {entry.name: entry for entry in found}
    pending = {name: place for name, place in named.items() if name not in entries}
    _check_local(pending.values())
    hashes = BaseHashes()
    with open_checkpoint(find_checkpoint(base, "base", access, base_revision)) as base_checkpoint:
        for number, (name, place) in enumerate(pending.items()):
            with open_checkpoint(find_checkpoint(place, "tuned checkpoint", access)) as checkpoint:
                encoder = Encoder(base_checkpoint, checkpoint, policy, hashes)
                part = _part_of(progress, number, len(pending))
                with new_delta(encoder, out / name, shard_bytes) as sink:
                    nbytes = encode_spans(encoder, sink, threads, part, coder)
                    entry = RunEntry.of(name, encoder.report(nbytes), is_new=True)
                    # Before the delta gets its name: a run has one base.
                    _require_base(out, entry, found[0].base_digest if found else entry.base_digest)
            entries[name] = entry
    ordered = sorted(entries.values(), key=lambda entry: natural_order(entry.name))
    return RunReport(deltas=ordered)


def _by_name(tuned: Sequence[str | PathLike[str]]) -> dict[str, str | PathLike[str]]:
    """The checkpoints by the names of their deltas."""
    named: dict[str, str | PathLike[str]] = {}
    for place in tuned:
        repo = as_repo_id(place)
        name = _local_name(place) if repo is None else _repo_name(repo)
        if name in named:
            msg = f"two checkpoints are named {printable(name)}; store them in different runs"
            raise CheckpointError(msg, file=printable(str(place)))
        if not name or name.startswith("."):
            msg = "its name cannot be that of a delta; rename it"
            raise CheckpointError(msg, file=printable(str(place)))
        named[name] = place
    return named


def _local_name(place: str | PathLike[str]) -> str:
    path = Path(os.path.abspath(place))  # noqa: PTH100 - resolve() would follow links
    return path.stem if path.is_file() else path.name


def _repo_name(repo: RepoId) -> str:
    name = repo.repo.rpartition("/")[2]
    return name if repo.revision is None else f"{name}-{repo.revision.replace('/', '-')}"


def _check_local(places: Iterable[str | PathLike[str]]) -> None:
    """Open each local checkpoint once, so that a broken one is found before any is encoded."""
    for place in places:
        if as_repo_id(place) is None:
            open_checkpoint(Path(place)).close()


def _require_base(out: Path, entry: RunEntry, digest: str) -> None:
    """Require that a delta of a run has the base with a state digest."""
    if entry.base_digest != digest:
        msg = "was made against another base; remove it, or choose another folder for this run"
        raise BaseMismatchError(msg, file=out / entry.name)


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
