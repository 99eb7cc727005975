"""Verifying a delta: its own bytes, its base, and the checkpoint that it stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlsparse_store.delta.apply import rebuild_files
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.resolve import find_base, find_checkpoint, find_delta
from rlsparse_store.errors import IndexFormatError, VerificationError
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.format.index.records import Kind
from rlsparse_store.format.names import printable
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.chunk_decoder import check_stored_bytes, wrong_base
from rlsparse_store.pipeline.decode import decode_tensors
from rlsparse_store.pipeline.fingerprints import checkpoint_state, tensor_digest
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.delta.html_table import Rows

__all__ = ["VerifyReport", "check_alone", "check_base", "verify_delta"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerifyReport(SummaryRepr):
    """What was verified. A failure raises instead.

    Attributes:
        chunks: Chunks whose stored bytes match their checksums.
        base_checked: Whether the base was compared with the delta's digest of it.
        decoded: Whether every tensor was decoded and compared with its digest.
        tuned_checked: Whether a tuned checkpoint was compared with the delta.
        cast: Dtype to which the checkpoint was rounded before it was encoded, if any.
    """

    chunks: int
    base_checked: bool
    decoded: bool
    tuned_checked: bool
    cast: str | None

    def _summary(self) -> Rows:
        yield "chunks", self.chunks
        yield "base_checked", self.base_checked
        yield "decoded", self.decoded
        yield "tuned_checked", self.tuned_checked
        yield "cast", self.cast


def verify_delta(  # noqa: PLR0913 - what from_pretrained takes of the Hub, three times
    delta: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    tuned: str | PathLike[str] | None = None,
    subfolder: str = "",
    threads: int | None = None,
    max_tuned_bytes: int | None = None,
    progress: Progress = no_progress,
    revision: str | None = None,
    base_revision: str | None = None,
    tuned_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> VerifyReport:
    """Verify a delta as far as its arguments allow.

    Alone, its own files: a checksum covers every stored byte. With its base, also every base
    tensor and every decoded tensor. With a tuned checkpoint, also that the delta stores it.

    Args:
        delta: Folder of the delta, its URL in object storage, or ``org/name[@revision]`` on the
            Hub.
        base: The base to verify: a folder, a ``.safetensors`` file, a URL or
            ``org/name[@revision]``.
        tuned: The tuned checkpoint to compare with, likewise.
        subfolder: Folder of the delta within a repository or folder of several deltas.
        threads: Threads to decode on; all processors by default.
        max_tuned_bytes: Bytes of all tuned tensors to accept. A small delta may store a large
            checkpoint; by default any size is accepted.
        progress: Called with bytes done and bytes in all.
        revision: Branch, tag or commit of the delta on the Hub, if the id does not name one.
        base_revision: The same of the base.
        tuned_revision: The same of the tuned checkpoint.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        What was verified.

    Raises:
        FormatError: The delta is damaged.
        TooLargeError: The tuned checkpoint has more than ``max_tuned_bytes``.
        BaseMismatchError: The base is another checkpoint.
        VerificationError: The tuned checkpoint is not the stored one.

    Example:
        >>> verify_delta("qwen-grpo-delta", base="qwen-base").decoded  # doctest: +SKIP
        True
    """
    workers = resolve_threads(threads)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    path = find_delta(delta, revision, subfolder, access)
    with DeltaReader(path, max_tuned_bytes=max_tuned_bytes) as reader:
        if base is None:
            check_alone(reader, workers)
        else:
            reader.check_state()
            rebuild_files(reader)
            with open_checkpoint(find_base(reader, base, base_revision, access)) as checkpoint:
                check_base(reader, checkpoint, workers, progress)
        if tuned is not None:
            found = find_checkpoint(tuned, "tuned checkpoint", access, tuned_revision)
            with open_checkpoint(found) as checkpoint:
                _check_tuned(reader, checkpoint)
        return VerifyReport(
            chunks=len(reader.index.chunks),
            base_checked=base is not None,
            decoded=base is not None,
            tuned_checked=tuned is not None,
            cast=reader.manifest.cast,
        )


def check_alone(reader: DeltaReader, threads: int) -> None:
    """Verify a delta's own files: a checksum covers every stored byte.

    Args:
        reader: The delta.
        threads: Threads to read on.

    Raises:
        FormatError: The delta is damaged.
    """
    reader.check_state()
    rebuild_files(reader)
    check_stored_bytes(reader, threads)


def check_base(reader: DeltaReader, base: Checkpoint, threads: int, progress: Progress) -> None:
    """Verify all of the base, and that every tensor decodes against it.

    Raises:
        FormatError: The delta is damaged, or the base is another checkpoint.
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
        problem = "a tensor that no tuned tensor uses has different values"
        if extra is not None:
            problem = "is not a tensor of the base that the delta needs"
        raise wrong_base(reader, base.path, extra, problem)
    if extra is not None:
        msg = "the index does not name every tensor of the base that was removed"
        raise IndexFormatError(msg, file=reader.path)


def _check_tuned(reader: DeltaReader, tuned: Checkpoint) -> None:
    stored = reader.index.tuned_identities()
    for t in stored:
        found = tuned.tensors.get(t.name)
        if found is None:
            problem = "is missing"
        elif (found.dtype, found.shape) != (t.dtype, t.shape):
            problem = (
                f"is {found.dtype.code} {list(found.shape)}, not {t.dtype.code} {list(t.shape)}"
            )
        elif tensor_digest(tuned, found) != t.digest:
            problem = "has other values"
        else:
            continue
        msg = f"{problem}: this is not the checkpoint that the delta stores"
        raise VerificationError(msg, file=tuned.path, tensor=printable(t.name))
    names = {t.name for t in stored}
    extra = next((name for name in tuned.tensors if name not in names), None)
    if extra is not None:
        msg = "is not in the delta: this is not the checkpoint that the delta stores"
        raise VerificationError(msg, file=tuned.path, tensor=printable(extra))
