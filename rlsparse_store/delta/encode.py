"""Encoding a tuned checkpoint as a delta of its base."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from rlsparse_store.delta.delta_place import new_delta_place
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.plausibility import issue_warnings
from rlsparse_store.delta.resolve import find_checkpoint
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.files.copy import copy_source
from rlsparse_store.files.delta_writer import ChunkSink, CountingSink, DeltaWriter
from rlsparse_store.files.output import output_errors, output_folder
from rlsparse_store.files.side_files import open_side_files
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.tensor_matching import DtypePolicy
from rlsparse_store.pipeline.threads import Batch, batched, ordered_map, resolve_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike
    from pathlib import Path

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.pipeline.spans import CodedSpan, Span
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.coder import CpuCoder, SpanCoder

__all__ = [
    "SHARD_BYTES",
    "dtype_policy",
    "encode_delta",
    "encode_open",
    "encode_spans",
    "measure_pair",
    "new_delta",
]

SHARD_BYTES: Final = 4 << 30
"""Chunk bytes after which a delta is split into files, by default."""


def encode_delta(  # noqa: PLR0913 - each option is one of the command line's
    base: str | PathLike[str],
    tuned: str | PathLike[str],
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
    tuned_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> EncodeReport:
    """Store a tuned checkpoint as a delta against its base.

    Every tensor comes back bit for bit, and the tuned checkpoint's files byte for byte. The
    same pair gives the same bytes on any number of threads.

    Args:
        base: The base: a Hugging Face folder, a ``.safetensors`` file or ``org/name[@revision]``.
        tuned: The tuned checkpoint, likewise. It may be sharded differently.
        out: Folder of the delta, which must not exist or must be empty, or its URL in object
            storage, such as ``s3://bucket/delta``.
        cast: ``"bf16"`` first rounds float32 tensors of a bfloat16 base to bfloat16. This is lossy,
            and the delta records it.
        keep_dtype: Store tensors whole whose dtype does not match the base's, instead of raising.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which the delta continues in another file.
        coder: Encodes on a device, such as :class:`rlsparse_store.torch.DeviceCoder`; the CPU by
            default. The bytes are the same. Experimental: never run on a GPU.
        include: Paths or patterns of more small files of the tuned folder to copy beside the delta,
            such as ``trainer_state.json``. What a model needs to load is copied in any case.
        exclude: Patterns of small files to leave out.
        force: Encode a pair that is refused as implausible.
        progress: Called with bytes done and bytes in all.
        base_revision: Branch, tag or commit of the base on the Hub, if its id does not name one.
        tuned_revision: The same of the tuned checkpoint.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Returns:
        What was stored, and its size.

    Raises:
        NotFoundError: There is no such checkpoint.
        CheckpointError: A checkpoint is broken or holds only pickled weights.
        ImplausibleError: The tuned checkpoint is not one of this base, as names and shapes show.
        DtypeMismatchError: A dtype does not match the base's, and neither option says what to do.
        OutputError: The delta cannot be written.

    Warns:
        ImplausibleWarning: The pair is probably not the intended one: nothing changed, nearly
            everything did, or the delta saves nothing.

    Example:
        >>> encode_delta("qwen-base", "qwen-grpo", "qwen-grpo-delta")  # doctest: +SKIP
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    base_path = find_checkpoint(base, "base", access, base_revision)
    tuned_path = find_checkpoint(tuned, "tuned checkpoint", access, tuned_revision)
    with (
        open_checkpoint(base_path) as base_checkpoint,
        open_checkpoint(tuned_path) as checkpoint,
        open_side_files(checkpoint, include, exclude) as sides,
    ):
        encoder = Encoder(base_checkpoint, checkpoint, policy, sides=sides, force=force)
        with new_delta_place(out) as folder:
            report = encode_open(encoder, folder, threads, shard_bytes, progress, coder)
    issue_warnings(report)
    return report


def encode_open(
    encoder: Encoder,
    out: Path,
    threads: int | None,
    shard_bytes: int,
    progress: Progress,
    coder: SpanCoder | None,
) -> EncodeReport:
    """Write the delta of an open pair, as :func:`encode_delta` does."""
    with new_delta(encoder, out, shard_bytes) as sink:
        nbytes = encode_spans(encoder, sink, threads, progress, coder)
    return encoder.report(nbytes)


def encode_spans(
    encoder: Encoder,
    sink: ChunkSink,
    threads: int | None,
    progress: Progress,
    coder: SpanCoder | None = None,
) -> int:
    """Encode every span of a checkpoint into a sink.

    Args:
        encoder: The encoding.
        sink: Takes chunks and index.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.
        coder: Encodes the spans; on the CPU by default.

    Returns:
        Bytes of the delta's files.

    Raises:
        RlsparseError: A checkpoint changed or cannot be read, or the delta cannot be written.
    """
    workers = resolve_threads(threads)
    chosen = coder or CpuCoder()
    base, tuned = encoder.base, encoder.tuned

    def code(batch: Batch[Span]) -> list[CodedSpan]:
        return chosen.code(batch.items, base, tuned)

    spans = ((span, chosen.weigh(span, base, tuned)) for span in encoder.spans(get_backend()))
    # Users count the checkpoint's bytes; those of the base are read besides.
    done, coded_bytes, total = 0, max(1, encoder.nbytes), tuned.nbytes
    for coded in ordered_map(code, batched(spans, chosen.batch_bytes), workers):
        for span in coded:
            encoder.add(span, sink)
            done += span.span.nbytes
        progress(min(total * done // coded_bytes, total), total)
    progress(total, total)
    base.check_unchanged()
    tuned.check_unchanged()
    encoder.sides.check_unchanged()
    return encoder.finish(sink)


def measure_pair(  # noqa: PLR0913 - as encode_delta
    base: str | PathLike[str],
    tuned: str | PathLike[str],
    *,
    cast: Literal["bf16"] | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
    base_revision: str | None = None,
    tuned_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> EncodeReport:
    """Report what the delta of a pair would hold and how large it would be. Writes nothing.

    Args:
        base: As for :func:`encode_delta`.
        tuned: As for :func:`encode_delta`.
        cast: As for :func:`encode_delta`.
        keep_dtype: As for :func:`encode_delta`.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.
        base_revision: As for :func:`encode_delta`.
        tuned_revision: As for :func:`encode_delta`.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: There is no such checkpoint.
        CheckpointError: A checkpoint is broken or holds only pickled weights.
        DtypeMismatchError: A dtype does not match the base's, and neither option says what to do.

    Example:
        >>> measure_pair("qwen-base", "qwen-grpo").density  # doctest: +SKIP
        0.158
    """
    policy = dtype_policy(cast, keep=keep_dtype)
    access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    base_path = find_checkpoint(base, "base", access, base_revision)
    tuned_path = find_checkpoint(tuned, "tuned checkpoint", access, tuned_revision)
    with (
        open_checkpoint(base_path) as base_checkpoint,
        open_checkpoint(tuned_path) as checkpoint,
        open_side_files(checkpoint) as sides,
    ):
        # An implausible pair may be measured: that is how it is found out.
        encoder = Encoder(base_checkpoint, checkpoint, policy, sides=sides, force=True)
        sink = CountingSink(encoder.largest_manifest())
        nbytes = encode_spans(encoder, sink, threads, progress)
        return encoder.report(nbytes)


def dtype_policy(cast: str | None, *, keep: bool) -> DtypePolicy:
    """The policy for dtypes that do not match.

    Raises:
        ValueError: ``cast`` is unknown.
    """
    if cast not in (None, "bf16"):
        msg = f"cast={cast!r}: only 'bf16' is supported"
        raise ValueError(msg)
    return DtypePolicy(cast=cast is not None, keep=keep)


@contextmanager
def new_delta(
    encoder: Encoder,
    out: Path,
    shard_bytes: int,
    finish: Callable[[Path], None] = lambda _: None,
) -> Iterator[ChunkSink]:
    """A sink for the chunks of a delta, which appears under its name when the block succeeds.

    Args:
        encoder: The encoding.
        out: Folder of the delta.
        shard_bytes: Bytes of chunks after which it continues in another file.
        finish: Called with the temporary folder before it gets its name.

    Raises:
        OutputError: The delta cannot be written.
    """
    with output_folder(out, encoder.sides.nbytes) as folder:
        with output_errors(out):
            (folder / DELTA_FOLDER).mkdir()
        with DeltaWriter(folder / DELTA_FOLDER, encoder.largest_manifest(), shard_bytes) as sink:
            yield sink
        for name, source in encoder.sides.files.items():
            copy_source(source, folder / name)
        finish(folder)
