"""Digests of checkpoints on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlsparse_store.format.digests import TensorDigester, TensorIdentity, state_digest
from rlsparse_store.format.index.records import ChunkCoding, Kind
from rlsparse_store.pipeline.chunk_decoder import wrong_base
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES
from rlsparse_store.pipeline.threads import ordered_map

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.files.delta_reader import DeltaReader

__all__ = [
    "BaseHashes",
    "check_origins",
    "check_small_origins",
    "checkpoint_state",
    "tensor_digest",
]


def tensor_digest(checkpoint: Checkpoint, tensor: TensorRef) -> bytes:
    """The digest of a tensor of a checkpoint, read piece by piece."""
    digester = TensorDigester(tensor.nbytes)
    for start in range(0, tensor.nbytes, PIECE_BYTES):
        digester.add(checkpoint.read(tensor, start, min(PIECE_BYTES, tensor.nbytes - start)))
    return digester.digest()


@dataclass(slots=True)
class BaseHashes:
    """Hashes of a base's tensors, kept while several checkpoints are encoded against it.

    They take 8 bytes for each 16 KiB of the base.

    Attributes:
        leaves: Leaf hashes of tensors, by name.
        digests: Digests of tensors, by name.
    """

    leaves: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)


def checkpoint_state(checkpoint: Checkpoint, known: dict[str, bytes] | None = None) -> str:
    """The state digest of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        known: Digests of some of its tensors, which are not read again. Takes the others.
    """
    digests = {} if known is None else known
    for t in checkpoint.tensors.values():
        if t.name not in digests:
            digests[t.name] = tensor_digest(checkpoint, t)
    return state_digest(
        TensorIdentity(t.name, t.dtype, t.shape, digests[t.name])
        for t in checkpoint.tensors.values()
    )


def check_origins(reader: DeltaReader, base: Checkpoint, threads: int, *, every: bool) -> None:
    """Require that what tuned tensors come from has the digests that the delta gives.

    Args:
        reader: The delta.
        base: What may be its base; its names, dtypes and lengths were checked.
        threads: Threads to read on.
        every: Whether sources are read too whose words are all covered by checks of chunks, which
            whoever decodes them compares.

    Raises:
        BaseMismatchError: A tensor has other values.
    """
    covered: Counter[int] = Counter()
    for chunk in reader.index.chunks:
        if chunk.coding is not ChunkCoding.WHOLE:
            covered[chunk.tensor] += chunk.length
    expected = {
        t.origin: t.base_digest or t.tuned_digest
        for number, t in enumerate(reader.index.tensors)
        if t.kind is Kind.SAME or (t.kind is Kind.DELTA and (every or covered[number] < t.shared))
    }
    _compare(reader, base, expected, threads)


def check_small_origins(reader: DeltaReader, base: Checkpoint, most: int, nbytes: int) -> None:
    """Require that some small tensors of the base have the digests that the delta gives.

    Where reading all of a base would take a download, this tells bases of one architecture apart.

    Args:
        reader: The delta.
        base: What may be its base; its names, dtypes and lengths were checked.
        most: How many tensors to read: the largest ones.
        nbytes: Bytes of the largest tensor to read.

    Raises:
        BaseMismatchError: A tensor has other values.
    """
    expected = {
        t.origin: t.base_digest or t.tuned_digest
        for t in reader.index.tensors
        if t.kind in (Kind.SAME, Kind.DELTA)
    }
    small = [name for name in expected if base.tensors[name].nbytes <= nbytes]
    largest = sorted(small, key=lambda name: (-base.tensors[name].nbytes, name))[:most]
    _compare(reader, base, {name: expected[name] for name in largest}, most)


def _compare(
    reader: DeltaReader, base: Checkpoint, expected: dict[str, bytes], threads: int
) -> None:
    """Require that tensors of a base have these digests.

    Raises:
        BaseMismatchError: One has another.
    """
    sources = [base.tensors[name] for name in expected]

    def digest(source: TensorRef) -> tuple[str, bytes]:
        return source.name, tensor_digest(base, source)

    for name, found in ordered_map(digest, sources, threads):
        if found != expected[name]:
            raise wrong_base(reader, base.path, name, "has other values in the base")
