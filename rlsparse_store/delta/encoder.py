"""Encoding one checkpoint: from the plan of every tensor to the index of the delta."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.delta.chunk_counts import ChunkCounts
from rlsparse_store.delta.plausibility import content_warnings, pair_notes, structure_warnings
from rlsparse_store.delta.report import EncodeReport, WholeTensor, report_tensors
from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.checkpoint_layout import (
    LayoutError,
    describe_file,
    describe_index,
)
from rlsparse_store.files.collector import collector_paused
from rlsparse_store.files.hub_cache import BaseHint, base_hint_from_path
from rlsparse_store.files.side_files import SideFiles
from rlsparse_store.format.digests import digest_of_leaves
from rlsparse_store.format.index.records import (
    ChunkRecord,
    FileRecord,
    FilesRecord,
    Index,
    Kind,
    TensorRecord,
)
from rlsparse_store.format.manifest import Manifest, Totals
from rlsparse_store.format.names import is_file_name, printable
from rlsparse_store.pipeline.fingerprints import BaseHashes, checkpoint_state
from rlsparse_store.pipeline.spans import (
    CodedSpan,
    Span,
    choose_word_coding,
    tensor_spans,
)
from rlsparse_store.pipeline.tensor_matching import (
    DtypePolicy,
    TensorPlan,
    find_sources,
    plan_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint
    from rlsparse_store.files.delta_writer import ChunkSink, IndexSink
    from rlsparse_store.kernels.interface import CpuBackend

__all__ = ["Encoder"]


class Encoder:
    """Encodes one checkpoint, from plans to index.

    Args:
        base: The base.
        tuned: The tuned checkpoint.
        policy: What to do where dtypes do not match.
        hashes: Hashes of the base that are known, to which this encoding adds its own.
        sides: The small files that travel with the weights, open.
        force: Whether an implausible pair is encoded all the same.
        by_content: Whether plans may depend on the content of the tuned checkpoint; see
            :func:`~rlsparse_store.pipeline.tensor_matching.plan_tensors`.

    Attributes:
        warnings: Why the pair is probably not what its user takes it for.
        plans: How each tensor is stored, in the order of the index.

    Raises:
        CheckpointError: The tuned checkpoint has a file name that the format does not allow, or an
            index that contradicts its shards.
        ImplausibleError: The tuned checkpoint is not one of this base, as its structure shows.
        DtypeMismatchError: A dtype does not match and the policy does not say what to do.
    """

    @collector_paused()
    def __init__(
        self,
        base: Checkpoint,
        tuned: Checkpoint,
        policy: DtypePolicy,
        hashes: BaseHashes | None = None,
        sides: SideFiles | None = None,
        *,
        force: bool = False,
        by_content: bool = True,
    ) -> None:
        self.base = base
        self.tuned = tuned
        self.sides = SideFiles() if sides is None else sides
        for file in tuned.files:
            if not (is_file_name(file.name) and file.name.endswith(".safetensors")):
                msg = (
                    f"has a file {printable(file.name)!r}: a delta keeps names of letters, digits, "
                    "'.', '_' and '-' that end in .safetensors; rename it"
                )
                raise CheckpointError(msg, file=tuned.path)
        if tuned.oddities:
            msg = (
                f"cannot be rebuilt file by file: {'; '.join(tuned.oddities)}; save it again, or "
                "repair the index in a copy of it"
            )
            raise CheckpointError(msg, file=tuned.path)
        _require_distinct(tuned)
        sources = find_sources(base, tuned, by_content=by_content)
        self.warnings = structure_warnings(base, tuned, sources, force=force)
        self.plans = plan_tensors(base, tuned, policy, sources, by_content=by_content)
        self._codings = [plan.dtype.coding for plan in self.plans]
        self._hashes = BaseHashes() if hashes is None else hashes
        self._digests = _Digests(self._hashes)
        self._chunks: list[ChunkRecord] = []
        self._counts: defaultdict[int, ChunkCounts] = defaultdict(ChunkCounts)
        self._hints = base_hint_from_path(base.path.absolute())
        self._index: Index | None = None
        self._manifest: Manifest | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of base and tuned checkpoint to read."""
        return sum(
            plan.end if plan.source is None else plan.end + plan.source.nbytes
            for plan in self.plans
            if plan.alias_of is None
        )

    def spans(self, backend: CpuBackend) -> Iterator[Span]:
        """The spans of every tensor, in order."""
        for number, plan in enumerate(self.plans):
            coding = choose_word_coding(plan, self.base, self.tuned, backend)
            self._codings[number] = coding
            source = plan.source
            known = None if source is None else self._hashes.leaves.get(source.name)
            yield from tensor_spans(number, plan, coding, known)

    def add(self, coded: CodedSpan, sink: ChunkSink) -> None:
        """Add an encoded span. Spans come in order."""
        self._digests.add(coded)
        for chunk in coded.chunks:
            record, number = chunk.record, chunk.record.tensor
            place = sink.add(chunk.stored, record.check)
            self._chunks.append(record.stored_at(place.shard, place.offset))
            self._counts[number].add(chunk, self._codings[number])

    def add_tensor(
        self, number: int, digest: bytes, chunks: list[ChunkRecord], counts: ChunkCounts
    ) -> None:
        """Add a tensor that was encoded elsewhere. Tensors come in order.

        Args:
            number: Its number.
            digest: Its digest.
            chunks: Records of its chunks, in order.
            counts: What they add up to.
        """
        self._codings[number] = self.plans[number].coded_dtype.coding
        self._digests.put(number, digest)
        self._chunks += chunks
        self._counts[number] = counts

    def alias(self, number: int, target: str) -> None:
        """Store a tensor as an alias of another one."""
        plan = self.plans[number]
        self.plans[number] = TensorPlan(plan.tuned, plan.dtype, alias_of=target)

    @collector_paused()
    def finish(self, sink: IndexSink) -> int:
        """Write the index after all spans, and return the bytes of the delta's files.

        Reads base tensors that are no source, for the base's state digest.

        Args:
            sink: Takes the index.
        """
        base_state = checkpoint_state(self.base, self._hashes.digests)
        tensors = [self._record(i) for i in range(len(self.plans))]
        removed = self._removed()
        self._index = Index(tensors, removed, self._chunks, self._files())
        self._manifest = self._make_manifest(
            base_state, self._index.tuned_state(), self._index.totals()
        )
        return sink.finish(self._index, self._manifest)

    def _record(self, number: int) -> TensorRecord:
        plan, coding = self.plans[number], self._codings[number]
        name, dtype, shape = plan.tuned.name, plan.dtype, plan.tuned.shape
        if plan.alias_of is not None:
            return TensorRecord(name, Kind.ALIAS, dtype, shape, origin=plan.alias_of)
        digest = self._digests.of(number)
        if plan.source is None:
            return TensorRecord(name, Kind.WHOLE, dtype, shape, coding, tuned_digest=digest)
        base_digest = self._hashes.digests[plan.source.name]
        if digest == base_digest and not plan.widening:
            origin = plan.source.name
            return TensorRecord(name, Kind.SAME, dtype, shape, origin=origin, tuned_digest=digest)
        return TensorRecord(
            name,
            Kind.DELTA,
            dtype,
            shape,
            coding,
            plan.widening,
            plan.source.name,
            coding.num_words(plan.coded_nbytes - plan.shared_bytes),
            tuple(self._counts[number].steps),
            self._counts[number].moved,
            digest,
            base_digest,
        )

    def _removed(self) -> list[str]:
        used = {plan.source.name for plan in self.plans if plan.source is not None}
        used |= self.tuned.tensors.keys()
        return [name for name in self.base.tensors if name not in used]

    def largest_manifest(self) -> Manifest:
        """A manifest at least as long as the final one."""
        many = 10**9
        words = 2 * self.tuned.nbytes
        totals = Totals(len(self.plans), words, words, many, self.tuned.nbytes)
        return self._make_manifest("0" * 64, "0" * 64, totals)

    def _make_manifest(self, base: str, tuned: str, totals: Totals) -> Manifest:
        hints = self._hints or BaseHint("", "")
        cast = "BF16" if any(plan.is_cast for plan in self.plans) else None
        return Manifest(base, tuned, totals, hints.repo or None, hints.revision or None, cast=cast)

    def _files(self) -> FilesRecord:
        """The layout of the tuned files, which a cast changes."""
        try:
            index = describe_index(self.tuned)
        except LayoutError as error:
            raise CheckpointError(str(error), file=self.tuned.path) from error
        layouts = [describe_file(file) for file in self.tuned.files]
        files = [FileRecord(*layout) for layout in layouts]
        index_layout, index_text = index.layout, index.text
        if any(plan.is_cast for plan in self.plans):
            files = [_cast_layout(self.tuned, i, file) for i, file in enumerate(files)]
            if index_layout:
                size = sum(plan.stored_nbytes for plan in self.plans)
                text = json.dumps({"total_size": size}, indent=2, sort_keys=True)
                index_layout, index_text = 1, text.encode()
        file_of = [plan.tuned.file for plan in self.plans]
        return FilesRecord(files, file_of, index_layout, index_text)

    @collector_paused()
    def report(self, delta_bytes: int) -> EncodeReport:
        """Report what was stored, and its size.

        Args:
            delta_bytes: What :meth:`finish` returned.
        """
        assert self._index is not None  # noqa: S101 - finish() was called
        assert self._manifest is not None  # noqa: S101 - finish() was called
        whole = [
            WholeTensor(
                name=plan.tuned.name,
                reason=plan.reason or "shorter whole than as a delta",
                raw_bytes=counts.whole_raw,
                stored_bytes=counts.whole_stored,
            )
            for plan, counts in ((self.plans[i], self._counts[i]) for i in sorted(self._counts))
            if counts.whole_stored
        ]
        report = EncodeReport(
            **report_tensors(self._index, self._manifest, delta_bytes),
            base_bytes=self.base.nbytes,
            whole=whole,
            carried_files=list(self.sides.files),
            carried_bytes=self.sides.nbytes,
            skipped_files=self.sides.skipped,
            warnings=[],
            notes=pair_notes(self.base, self.tuned, self.sides),
        )
        return replace(report, warnings=[*self.warnings, *content_warnings(report)])


_EMPTY: Final = digest_of_leaves(0, np.zeros(0, np.uint64))
"""The digest of an empty tensor."""


class _Digests:
    """The digests of tuned tensors, from spans in order.

    Args:
        hashes: Receives leaf hashes and digests of the sources.
    """

    def __init__(self, hashes: BaseHashes) -> None:
        self._hashes = hashes
        self._found: dict[int, bytes] = {}
        self._spans: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []

    def add(self, coded: CodedSpan) -> None:
        """Add the leaf hashes of the next span."""
        span, base_leaves, tuned_leaves = coded.span, coded.base_leaves, coded.tuned_leaves
        if self._spans or not span.is_last:
            self._spans.append((base_leaves, tuned_leaves))
            if not span.is_last:
                return
            base_leaves = np.concatenate([base for base, _ in self._spans])
            tuned_leaves = np.concatenate([tuned for _, tuned in self._spans])
            self._spans = []
        plan, tuned = span.plan, None
        nbytes = plan.stored_nbytes
        if plan.source is not None:
            name = plan.source.name
            digest = digest_of_leaves(plan.source.nbytes, base_leaves)
            self._hashes.leaves[name], self._hashes.digests[name] = base_leaves, digest
            if tuned_leaves is base_leaves and nbytes == plan.source.nbytes:
                tuned = digest
        self._found[span.tensor] = tuned or digest_of_leaves(nbytes, tuned_leaves)

    def put(self, tensor: int, digest: bytes) -> None:
        """Add a digest that is known."""
        self._found[tensor] = digest

    def of(self, tensor: int) -> bytes:
        """The digest of a tensor. One without spans is empty."""
        return self._found.get(tensor, _EMPTY)


def _require_distinct(tuned: Checkpoint) -> None:
    """Refuse file names that differ by case only: on some systems they are one file."""
    seen: dict[str, str] = {}
    for file in tuned.files:
        other = seen.setdefault(file.name.lower(), file.name)
        if other != file.name:
            msg = f"has files {other!r} and {file.name!r}, which differ by case only; rename one"
            raise CheckpointError(msg, file=tuned.path)


def _cast_layout(tuned: Checkpoint, number: int, file: FileRecord) -> FileRecord:
    if file.layout != 2:
        return file
    metadata = tuned.files[number].parsed.metadata
    text = b"" if metadata is None else json.dumps(metadata, separators=(",", ":")).encode()
    return FileRecord(file.name, 0, text)
