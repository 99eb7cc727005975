"""The index of a delta whose chunks several processes have written, each for the slabs it holds."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from rlsparse_store.delta.chunk_counts import ChunkCounts
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.slab_encoder import TensorOrder
from rlsparse_store.errors import CheckpointError, RlsparseError
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.names import printable
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.fingerprints import BaseHashes, tensor_digest
from rlsparse_store.pipeline.slabs import join_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.delta.report import EncodeReport
    from rlsparse_store.delta.slab_encoder import SlabRecord
    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.files.delta_writer import IndexSink
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.manifest import Manifest
    from rlsparse_store.pipeline.tensor_matching import DtypePolicy, TensorPlan

__all__ = ["Described", "JoinedDelta", "Tie"]


class Tie(NamedTuple):
    """A slab in the same memory as the same slab of another tensor.

    Attributes:
        name: Its tensor.
        nbytes: Its length.
        target: The other tensor, whose slab is encoded.
    """

    name: str
    nbytes: int
    target: str


class Described:
    """A tensor of which this process knows the description, and others hold the bytes.

    Args:
        name: Its name.
        dtype: Its dtype.
        shape: Its dimensions, in elements.
    """

    def __init__(self, name: str, dtype: Dtype, shape: tuple[int, ...]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:  # noqa: ARG002 - protocol
        """Refuse to read.

        Raises:
            RlsparseError: Always.
        """
        msg = "its bytes are spread over the memory of several processes"
        raise RlsparseError(msg, tensor=printable(self.name))


class JoinedDelta:
    """Plans a delta by the names, dtypes and shapes of its tensors, and joins its slabs.

    The plan does not look at content. It stores tensors whole that were renamed beyond recognition.
    Equal tensors are aliases only if they share their memory. Integers are coded in words of their
    dtype. A float32 tensor over a narrower source counts as its exact widening; the process that
    holds it proves this or refuses it.

    Args:
        base: The base.
        tensors: The tensors.
        policy: What to do where dtypes do not match.
        hashes: Hashes of the base that are known, to which this delta adds its own.
        path: The delta's folder, for errors.

    Raises:
        DtypeMismatchError: A dtype does not match, and the policy does not say what to do.
    """

    def __init__(
        self,
        base: Checkpoint,
        tensors: Iterable[Described],
        policy: DtypePolicy,
        hashes: BaseHashes,
        path: Path,
    ) -> None:
        tuned = checkpoint_in_memory({tensor.name: tensor for tensor in tensors}, path)
        self._base = base
        self._hashes = hashes
        self._encoder = Encoder(base, tuned, policy, hashes, force=True, by_content=False)
        self._hash_leaves = get_backend().leaf_hashes

    def orders(self) -> dict[str, TensorOrder]:
        """How each tensor is to be stored, by its name."""
        return {plan.tuned.name: TensorOrder.of(plan) for plan in self._encoder.plans}

    def unmatched(self) -> set[str]:
        """The names of tensors without a source."""
        return {plan.tuned.name for plan in self._encoder.plans if plan.source is None}

    def known_sources(self) -> frozenset[str]:
        """The names of base tensors whose digest is known."""
        return frozenset(self._hashes.digests)

    def largest_manifest(self) -> Manifest:
        """A manifest at least as long as the final one."""
        return self._encoder.largest_manifest()

    def join(
        self, slabs: Iterable[SlabRecord], ties: Iterable[Tie], sink: IndexSink
    ) -> EncodeReport:
        """Write the index.

        Args:
            slabs: The slabs of all processes, in any order.
            ties: Slabs that are not stored, because they share their memory with others.
            sink: Takes the index.

        Raises:
            CheckpointError: Slabs of a tensor overlap, or some are missing.
            OutputError: The index cannot be written.
        """
        slabs_of: defaultdict[str, list[SlabRecord]] = defaultdict(list)
        for slab in slabs:
            slabs_of[slab.name].append(slab)
        ties_of: defaultdict[str, list[Tie]] = defaultdict(list)
        for tie in ties:
            ties_of[tie.name].append(tie)
        digests: dict[str, bytes] = {}
        plans = [*enumerate(self._encoder.plans)]
        for number, plan in plans:
            name = plan.tuned.name
            if name not in ties_of:
                digests[name] = self._add(number, plan, slabs_of[name])
        for number, plan in plans:
            name = plan.tuned.name
            if name in ties_of:
                target = _target(plan.tuned, ties_of[name], slabs_of)
                self._tie(number, plan, target, digests)
        return self._encoder.report(self._encoder.finish(sink))

    def _add(self, number: int, plan: TensorPlan, slabs: list[SlabRecord]) -> bytes:
        """Add a tensor from its slabs, and return its digest."""
        slabs.sort(key=lambda slab: slab.tuned.start)
        runs = [slab.tuned for slab in slabs]
        digest = join_runs(plan.tuned.name, plan.stored_nbytes, runs, self._hash_leaves)
        self._add_source(plan.source, slabs)
        counts = ChunkCounts()
        for slab in slabs:
            counts.merge(slab.counts)
        chunks = [chunk._replace(tensor=number) for slab in slabs for chunk in slab.chunks]
        self._encoder.add_tensor(number, digest, chunks, counts)
        return digest

    def _add_source(self, source: TensorRef | None, slabs: list[SlabRecord]) -> None:
        """Add the digest of a source, if slabs cover it."""
        runs = [slab.base for slab in slabs if slab.base is not None]
        if source is None or source.name in self._hashes.digests:
            return
        if sum(run.nbytes for run in runs) != source.nbytes:
            return

        def read(place: int, nbytes: int) -> NDArray[np.uint8]:
            return self._base.read(source, place, nbytes)

        whole = [run.with_edges(read) for run in runs]
        digest = join_runs(source.name, source.nbytes, whole, self._hash_leaves)
        self._hashes.digests[source.name] = digest

    def _tie(
        self, number: int, plan: TensorPlan, target: str, digests: Mapping[str, bytes]
    ) -> None:
        """Add a tensor that shares its memory with another one."""
        source = plan.source
        if source is not None and source.nbytes == plan.stored_nbytes and not plan.widening:
            if source.name not in self._hashes.digests:
                self._hashes.digests[source.name] = tensor_digest(self._base, source)
            if self._hashes.digests[source.name] == digests[target]:
                # Unchanged, like its target: it keeps its own source.
                self._encoder.add_tensor(number, digests[target], [], ChunkCounts())
                return
        self._encoder.alias(number, target)


def _target(tensor: TensorRef, ties: list[Tie], slabs_of: Mapping[str, list[SlabRecord]]) -> str:
    """Return the tensor whose memory another one shares.

    Raises:
        CheckpointError: It shares only parts of it, or that of several tensors.
    """
    targets = {tie.target for tie in ties}
    nbytes = sum(tie.nbytes for tie in ties)
    if len(targets) > 1 or nbytes != tensor.nbytes or slabs_of.get(tensor.name):
        others = printable(", ".join(sorted(targets)))
        msg = f"shares its memory with {others} on some ranks only; untie them, or tie them on all"
        raise CheckpointError(msg, tensor=printable(tensor.name))
    return targets.pop()
