"""Encoding: a pair of checkpoints in, a delta out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlsparse_store.backends import get_backend
from rlsparse_store.checkpoint import (
    INDEX_NAME,
    BaseHints,
    Checkpoint,
    SideFiles,
    copy_side_files,
    describe_file,
    describe_index,
    hints_from_path,
    open_checkpoint,
    sort_side_files,
)
from rlsparse_store.codec import DeltaChunk
from rlsparse_store.container import (
    DELTA_FOLDER,
    ChunkCoding,
    ChunkRecord,
    ChunkSink,
    CountingSink,
    DeltaWriter,
    FileRecord,
    FilesRecord,
    Index,
    Kind,
    Manifest,
    TensorRecord,
    Totals,
)
from rlsparse_store.delta.identity import checkpoint_state
from rlsparse_store.delta.pipeline import ordered_map
from rlsparse_store.delta.progress import Progress, silent
from rlsparse_store.delta.report import EncodeReport, WholeTensor, report_tensors
from rlsparse_store.delta.scan import (
    Coded,
    Piece,
    TensorScan,
    choose_coding,
    code_piece,
    scan_tensor,
)
from rlsparse_store.delta.sources import DtypePolicy, plan_tensors
from rlsparse_store.delta.threads import resolve_threads
from rlsparse_store.digest import bytes_check
from rlsparse_store.errors import CheckpointError
from rlsparse_store.storage.names import is_file_name
from rlsparse_store.storage.output import output_errors, output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SHARD_BYTES", "encode_delta", "measure_pair"]

SHARD_BYTES: Final = 4 << 30
"""Chunk bytes after which a delta is split into files, by default."""


def encode_delta(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    cast: str | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> EncodeReport:
    """Store a tuned checkpoint as a delta against its base.

    Every tensor comes back bit for bit, and the tuned checkpoint's files byte for byte. The
    same pair gives the same bytes on any number of threads.

    Args:
        base: The base: a Hugging Face folder or one ``.safetensors`` file.
        tuned: The tuned checkpoint, likewise. It may be sharded differently.
        out: Folder of the delta, which must not exist or be empty.
        cast: ``"bf16"`` rounds float32 tensors of a bfloat16 base to bfloat16 first. Lossy, and
            recorded in the delta.
        keep_dtype: Store tensors whose dtype does not fit the base's whole, instead of stopping.
        threads: Threads to work on; all processors by default.
        shard_bytes: Bytes of chunks after which a new file is begun.
        progress: Called with bytes done and bytes in all.

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
    policy = _policy(cast, keep=keep_dtype)
    out = Path(out)
    with (
        open_checkpoint(Path(base)) as base_checkpoint,
        open_checkpoint(Path(tuned)) as tuned_checkpoint,
        output_folder(out) as folder,
    ):
        encoder = _Encoder(base_checkpoint, tuned_checkpoint, policy, threads, progress)
        with output_errors(out):
            (folder / DELTA_FOLDER).mkdir()
        with DeltaWriter(folder / DELTA_FOLDER, encoder.largest_manifest(), shard_bytes) as sink:
            delta_bytes = encoder.run(sink)
        sides = _sort_sides(tuned_checkpoint)
        copied = copy_side_files(tuned_checkpoint.path, sides.carried, folder)
    return encoder.report(delta_bytes, sides, copied)


def measure_pair(
    base: str | Path,
    tuned: str | Path,
    *,
    cast: str | None = None,
    keep_dtype: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> EncodeReport:
    """Encode a pair without writing anything, to report what a delta would hold and take.

    Args and errors are those of :func:`encode_delta`.
    """
    policy = _policy(cast, keep=keep_dtype)
    with (
        open_checkpoint(Path(base)) as base_checkpoint,
        open_checkpoint(Path(tuned)) as tuned_checkpoint,
    ):
        encoder = _Encoder(base_checkpoint, tuned_checkpoint, policy, threads, progress)
        delta_bytes = encoder.run(CountingSink(encoder.largest_manifest()))
        return encoder.report(delta_bytes, _sort_sides(tuned_checkpoint), 0)


def _policy(cast: str | None, *, keep: bool) -> DtypePolicy:
    if cast not in (None, "bf16"):
        msg = f"cast is {cast!r}; only 'bf16' is known"
        raise ValueError(msg)
    return DtypePolicy(cast=cast is not None, keep=keep)


def _sort_sides(tuned: Checkpoint) -> SideFiles:
    if tuned.path.is_file():
        return SideFiles([], [])
    return sort_side_files(tuned.path, {file.name for file in tuned.files} | {INDEX_NAME})


class _Encoder:
    """One encoding, from plan to index."""

    def __init__(
        self,
        base: Checkpoint,
        tuned: Checkpoint,
        policy: DtypePolicy,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self._base = base
        self._tuned = tuned
        for file in tuned.files:
            if not (is_file_name(file.name) and file.name.endswith(".safetensors")):
                msg = "a delta keeps file names of letters, digits, '.', '_' and '-' that end in "
                raise CheckpointError(msg + ".safetensors; rename it", file=tuned.path)
        self._threads = resolve_threads(threads)
        self._progress = progress
        self._backend = get_backend()
        self._plans = plan_tensors(base, tuned, policy)
        self._scans: list[TensorScan] = []
        self._chunks: list[ChunkRecord] = []
        self._steps = [[0] * 8 for _ in self._plans]
        self._moved = [0] * len(self._plans)
        self._whole_raw = [0] * len(self._plans)
        self._whole_bytes = [0] * len(self._plans)
        self._hints = hints_from_path(base.path.absolute())
        self._index: Index | None = None
        self._manifest: Manifest | None = None

    def run(self, sink: ChunkSink) -> int:
        """Encode everything into ``sink`` and return the bytes of its files."""
        code = self._backend

        def work(piece: Piece) -> Coded:
            return code_piece(code, piece)

        for coded in ordered_map(work, self._pieces(), self._threads):
            self._add(coded, sink)
        self._base.check_unchanged()
        self._tuned.check_unchanged()
        tensors = [self._record(i) for i in range(len(self._plans))]
        removed = self._removed()
        self._index = Index(tensors, removed, self._chunks, self._files())
        self._manifest = self._make_manifest(
            self._base_state(), self._index.tuned_state(), self._index.totals()
        )
        return sink.finish(self._index, self._manifest)

    def _pieces(self) -> Iterator[Piece]:
        done, total = 0, self._tuned.nbytes
        for number, plan in enumerate(self._plans):
            coding = choose_coding(plan, self._base, self._tuned, self._backend)
            scan = TensorScan(coding)
            self._scans.append(scan)
            if plan.alias_of is None:
                yield from scan_tensor(number, plan, self._base, self._tuned, self._backend, scan)
            done += plan.tuned.nbytes
            self._progress(done, total)

    def _add(self, coded: Coded, sink: ChunkSink) -> None:
        chunk = coded.chunk
        place = sink.add(chunk.stored)
        is_delta = isinstance(chunk, DeltaChunk)
        coding = ChunkCoding.WHOLE
        if isinstance(chunk, DeltaChunk):
            coding = ChunkCoding.DELTA_WITH_ROWS if chunk.has_row_flags else ChunkCoding.DELTA
            for bin_number, count in enumerate(chunk.steps):
                self._steps[coded.tensor][bin_number] += count
        else:
            self._moved[coded.tensor] += coded.changed
            self._whole_raw[coded.tensor] += self._scans[coded.tensor].coding.nbytes(coded.length)
            self._whole_bytes[coded.tensor] += len(chunk.stored)
        self._chunks.append(
            ChunkRecord(
                coded.tensor,
                coded.first,
                coded.length,
                coding,
                place.shard,
                place.offset,
                len(chunk.stored),
                bytes_check(chunk.stored),
                coded.result_check,
                coded.base_check if is_delta else 0,
                chunk.bounds if isinstance(chunk, DeltaChunk) else (),
                chunk.changed if isinstance(chunk, DeltaChunk) else (),
            )
        )

    def _record(self, number: int) -> TensorRecord:
        plan, scan = self._plans[number], self._scans[number]
        name, dtype, shape = plan.tuned.name, plan.dtype, plan.tuned.shape
        if plan.alias_of is not None:
            return TensorRecord(name, Kind.ALIAS, dtype, shape, origin=plan.alias_of)
        if plan.source is None:
            digest = scan.tuned_digest
            return TensorRecord(name, Kind.WHOLE, dtype, shape, scan.coding, tuned_digest=digest)
        if scan.tuned_digest == scan.base_digest and not plan.widening:
            digest = scan.tuned_digest
            origin = plan.source.name
            return TensorRecord(name, Kind.SAME, dtype, shape, origin=origin, tuned_digest=digest)
        return TensorRecord(
            name,
            Kind.DELTA,
            dtype,
            shape,
            scan.coding,
            plan.widening,
            plan.source.name,
            scan.words - scan.coding.num_words(plan.shared_bytes),
            tuple(self._steps[number]),
            self._moved[number],
            scan.tuned_digest,
            scan.base_digest,
        )

    def _removed(self) -> list[str]:
        used = {plan.source.name for plan in self._plans if plan.source is not None}
        used |= self._tuned.tensors.keys()
        return [name for name in self._base.tensors if name not in used]

    def _base_state(self) -> str:
        """The base's state digest; tensors that nothing was coded against are read for it."""
        known = {
            plan.source.name: scan.base_digest
            for plan, scan in zip(self._plans, self._scans, strict=True)
            if plan.source is not None
        }
        return checkpoint_state(self._base, known)

    def largest_manifest(self) -> Manifest:
        """A manifest at least as long as the final one."""
        many = 10**9
        words = 2 * self._tuned.nbytes
        totals = Totals(len(self._plans), words, words, many, self._tuned.nbytes)
        return self._make_manifest("0" * 64, "0" * 64, totals)

    def _make_manifest(self, base: str, tuned: str, totals: Totals) -> Manifest:
        hints = self._hints or BaseHints("", "")
        cast = "BF16" if any(plan.is_cast for plan in self._plans) else None
        return Manifest(base, tuned, totals, hints.repo or None, hints.revision or None, cast)

    def _files(self) -> FilesRecord:
        """How the tuned files are laid out; cast ones anew, for their bytes are others."""
        index = describe_index(self._tuned)
        layouts = [describe_file(file) for file in self._tuned.files]
        files = [FileRecord(*layout) for layout in layouts]
        index_layout, index_text = index.layout, index.text
        if any(plan.is_cast for plan in self._plans):
            files = [_cast_layout(self._tuned, i, file) for i, file in enumerate(files)]
            if index_layout:
                size = sum(plan.stored_nbytes for plan in self._plans)
                text = json.dumps({"total_size": size}, indent=2, sort_keys=True)
                index_layout, index_text = 1, text.encode()
        file_of = [plan.tuned.file for plan in self._plans]
        return FilesRecord(files, file_of, index_layout, index_text)

    def report(self, delta_bytes: int, sides: SideFiles, copied: int) -> EncodeReport:
        """Say what was stored and what it takes."""
        assert self._index is not None  # noqa: S101 - run() was called
        assert self._manifest is not None  # noqa: S101 - run() was called
        whole = [
            WholeTensor(
                name=plan.tuned.name,
                reason=plan.reason or "shorter whole than as a delta",
                raw_bytes=self._whole_raw[i],
                stored_bytes=self._whole_bytes[i],
            )
            for i, plan in enumerate(self._plans)
            if self._whole_bytes[i]
        ]
        return EncodeReport(
            **report_tensors(self._index, self._manifest, delta_bytes),
            base_bytes=self._base.nbytes,
            whole=whole,
            carried_files=sides.carried,
            carried_bytes=copied,
            skipped_files=sides.skipped,
        )


def _cast_layout(tuned: Checkpoint, number: int, file: FileRecord) -> FileRecord:
    if file.layout != 2:
        return file
    metadata = tuned.files[number].parsed.metadata
    text = b"" if metadata is None else json.dumps(metadata, separators=(",", ":")).encode()
    return FileRecord(file.name, 0, text)
