"""Encoding: a pair of checkpoints in, a delta out."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.encode_batch import encode_together
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.resolve import find_checkpoint
from rlsparse_store.files.checkpoint import Checkpoint, open_checkpoint
from rlsparse_store.files.copy import copy_files
from rlsparse_store.files.delta_writer import ChunkSink, CountingSink, DeltaWriter
from rlsparse_store.files.output import output_errors, output_folder
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.tensor_matching import DtypePolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.pipeline.coder import SpanCoder

__all__ = [
    "SHARD_BYTES",
    "dtype_policy",
    "encode_delta",
    "encode_opened",
    "measure_pair",
    "new_delta",
]

SHARD_BYTES: Final = 4 << 30
"""Chunk bytes after which a delta is split into files, by default."""


def encode_delta(  # noqa: PLR0913 - each option is one of the command line's
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    cast: str | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
    coder: SpanCoder | None = None,
) -> EncodeReport:
    """Store a tuned checkpoint as a delta against its base.

    Every tensor comes back bit for bit, and the tuned checkpoint's files byte for byte. The
    same pair gives the same bytes on any number of threads.

    Args:
        base: The base: a Hugging Face folder, a ``.safetensors`` file or ``org/name[@revision]``.
        tuned: The tuned checkpoint, likewise. It may be sharded differently.
        out: Folder of the delta, which must not exist or be empty.
        cast: ``"bf16"`` rounds float32 tensors of a bfloat16 base to bfloat16 first. Lossy, and
            recorded in the delta.
        keep_dtype: Store tensors whose dtype does not fit the base's whole, instead of stopping.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a new file is begun.
        progress: Called with bytes done and bytes in all.
        coder: What codes, such as :class:`rlsparse_store.torch.DeviceCoder`; the CPU by default.

    Returns:
        What was stored and what it takes.

    Raises:
        NotFoundError: A checkpoint is not there.
        CheckpointError: A checkpoint is broken or holds only pickled weights.
        DtypeMismatchError: A dtype does not fit, and neither option says what to do.
        OutputError: The delta cannot be written.

    Example:
        >>> encode_delta("qwen-base", "qwen-grpo", "qwen-grpo-delta")  # doctest: +SKIP
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess()
    with (
        open_checkpoint(find_checkpoint(base, "base", access)) as base_checkpoint,
        open_checkpoint(find_checkpoint(tuned, "tuned checkpoint", access)) as tuned_checkpoint,
    ):
        encoder = Encoder(base_checkpoint, tuned_checkpoint, policy)
        return encode_opened(
            base_checkpoint, encoder, Path(out), threads, shard_bytes, progress, coder
        )


def encode_opened(
    base: Checkpoint,
    encoder: Encoder,
    out: Path,
    threads: int | None,
    shard_bytes: int,
    progress: Progress,
    coder: SpanCoder | None,
) -> EncodeReport:
    """Store a tuned checkpoint that is open, as :func:`encode_delta` does."""
    with new_delta(encoder, out, shard_bytes) as sink:
        (nbytes,) = encode_together(base, [(encoder, sink)], threads, progress, coder)
    return encoder.report(nbytes)


def measure_pair(
    base: str | Path,
    tuned: str | Path,
    *,
    cast: str | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> EncodeReport:
    """Encode a pair without writing anything, to report what a delta would hold and take.

    Args:
        base: As for :func:`encode_delta`.
        tuned: As for :func:`encode_delta`.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        NotFoundError: A checkpoint is not there.
        CheckpointError: A checkpoint is broken or holds only pickled weights.
        DtypeMismatchError: A dtype does not fit, and neither option says what to do.

    Example:
        >>> measure_pair("qwen-base", "qwen-grpo").density  # doctest: +SKIP
        0.158
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess()
    with (
        open_checkpoint(find_checkpoint(base, "base", access)) as base_checkpoint,
        open_checkpoint(find_checkpoint(tuned, "tuned checkpoint", access)) as tuned_checkpoint,
    ):
        encoder = Encoder(base_checkpoint, tuned_checkpoint, policy)
        sink = CountingSink(encoder.largest_manifest())
        (nbytes,) = encode_together(base_checkpoint, [(encoder, sink)], threads, progress)
        return encoder.report(nbytes)


def dtype_policy(cast: str | None, *, keep: bool) -> DtypePolicy:
    """The policy that the options say.

    Raises:
        ValueError: ``cast`` is unknown.
    """
    if cast not in (None, "bf16"):
        msg = f"cast is {cast!r}; only 'bf16' is known"
        raise ValueError(msg)
    return DtypePolicy(cast=cast is not None, keep=keep)


@contextmanager
def new_delta(encoder: Encoder, out: Path, shard_bytes: int) -> Iterator[ChunkSink]:
    """A place for the chunks of a delta, which is there under its name once the block ends well.

    Raises:
        OutputError: It cannot be written.
    """
    with output_folder(out) as folder:
        with output_errors(out):
            (folder / DELTA_FOLDER).mkdir()
        with DeltaWriter(folder / DELTA_FOLDER, encoder.largest_manifest(), shard_bytes) as sink:
            yield sink
        copy_files(encoder.tuned.path, encoder.side_files().carried, folder)
