"""Verifying: is the delta sound, is this its base, is this the checkpoint it stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.delta.apply import rebuild_files
from rlsparse_store.delta.resolve import find_base, find_checkpoint, find_delta
from rlsparse_store.errors import IndexFormatError, VerificationError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.records import Kind
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_batches import check_stored_bytes
from rlsparse_store.pipeline.chunk_decoder import wrong_base
from rlsparse_store.pipeline.decode import decode_tensors
from rlsparse_store.pipeline.fingerprints import checkpoint_state, tensor_digest
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VerifyReport", "check_alone", "check_base", "verify_delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was verified; a failure raises instead.

    Attributes:
        chunks: Chunks whose stored bytes were checked.
        base_checked: Whether the base was compared with the one the delta was made against.
        decoded: Whether every tensor was decoded and compared with its digest.
        tuned_checked: Whether a tuned checkpoint was compared with the delta.
        cast: Dtype that the checkpoint was rounded to before it was encoded, if it was.
    """

    chunks: int
    base_checked: bool
    decoded: bool
    tuned_checked: bool
    cast: str | None


def verify_delta(
    delta: str | Path,
    *,
    base: str | Path | None = None,
    tuned: str | Path | None = None,
    subfolder: str = "",
    threads: int | None = None,
    progress: Progress = no_progress,
) -> VerifyReport:
    """Verify a delta as far as what is given allows.

    Alone, its own files: every stored byte is covered by a check. With its base also every
    base tensor, and every decoded tensor. With a tuned checkpoint also that it is the one stored.

    Args:
        delta: Folder of the delta, or ``org/name[@revision]`` on the Hub.
        base: The base, or what claims to be it: a folder, a file or an id, too.
        tuned: A checkpoint that should be the tuned one, likewise.
        subfolder: The delta's folder within, of a repository or folder with several.
        threads: Threads to decode on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        FormatError: The delta is damaged.
        BaseMismatchError: The base is not the right one.
        VerificationError: The tuned checkpoint is another one.

    Example:
        >>> verify_delta("qwen-grpo-delta", base="qwen-base").decoded  # doctest: +SKIP
        True
    """
    workers = resolve_threads(threads)
    access = HubAccess()
    with DeltaReader(find_delta(delta, None, subfolder, access)) as reader:
        if base is None:
            check_alone(reader, workers)
        else:
            reader.check_state()
            rebuild_files(reader)
            with open_checkpoint(find_base(reader, base, None, access)) as checkpoint:
                check_base(reader, checkpoint, workers, progress)
        if tuned is not None:
            with open_checkpoint(find_checkpoint(tuned, "tuned checkpoint", access)) as checkpoint:
                _check_tuned(reader, checkpoint)
        return VerifyReport(
            chunks=len(reader.index.chunks),
            base_checked=base is not None,
            decoded=base is not None,
            tuned_checked=tuned is not None,
            cast=reader.manifest.cast,
        )


def check_alone(reader: DeltaReader, threads: int) -> None:
    """Require that a delta is sound, as far as it tells without its base: every stored byte is.

    Args:
        reader: The delta.
        threads: Threads to read on.

    Raises:
        FormatError: It is damaged.
    """
    reader.check_state()
    rebuild_files(reader)
    check_stored_bytes(reader, threads)


def check_base(reader: DeltaReader, base: Checkpoint, threads: int, progress: Progress) -> None:
    """Require that this is the base as a whole, and that everything decodes against it.

    Raises:
        FormatError: The delta is damaged, or it is not.
    """
    decode_tensors(reader, base, threads, lambda _tensor, _offset, _data: None, progress)
    # Decoding compared every source of the same bytes; the state covers the other tensors too.
    known = {
        t.origin: t.base_digest or t.tuned_digest
        for t in reader.index.tensors
        if t.kind in (Kind.SAME, Kind.DELTA)
    }
    missing = next((name for name in reader.index.removed if name not in base.tensors), None)
    if missing is not None:
        raise wrong_base(reader, base.path, missing, "is missing from the base")
    named = {t.name for t in reader.index.tensors}.union(reader.index.removed, known)
    extra = next((name for name in base.tensors if name not in named), None)
    if checkpoint_state(base, known) != reader.manifest.base_digest:
        problem = "a tensor that nothing comes from has other values in the base"
        if extra is not None:
            problem = "is a tensor more than the base had"
        raise wrong_base(reader, base.path, extra, problem)
    if extra is not None:
        msg = "the index does not name every tensor of the base that was removed"
        raise IndexFormatError(msg, file=reader.path)


def _check_tuned(reader: DeltaReader, tuned: Checkpoint) -> None:
    digests = {t.name: t.tuned_digest for t in reader.index.tensors}
    for t in reader.index.tensors:
        found = tuned.tensors.get(t.name)
        if found is None:
            problem = "is missing"
        elif (found.dtype, found.shape) != (t.dtype, t.shape):
            problem = (
                f"is {found.dtype.code} {list(found.shape)}, not {t.dtype.code} {list(t.shape)}"
            )
        elif tensor_digest(tuned, found) != digests[t.origin if t.kind is Kind.ALIAS else t.name]:
            problem = "has other values"
        else:
            continue
        msg = f"{problem}: this is not the checkpoint that the delta stores"
        raise VerificationError(msg, file=tuned.path, tensor=printable(t.name))
    extra = next((name for name in tuned.tensors if name not in digests), None)
    if extra is not None:
        msg = "is not in the delta: this is not the checkpoint that it stores"
        raise VerificationError(msg, file=tuned.path, tensor=printable(extra))
