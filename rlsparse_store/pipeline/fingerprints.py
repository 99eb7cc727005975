"""Digests of checkpoints on disk, and their comparison with a delta's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlsparse_store.format.digests import TensorDigester, TensorIdentity, state_digest
from rlsparse_store.format.index.records import ChunkCoding, Kind
from rlsparse_store.kernels.dispatch import get_backend
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
    """Return the digest of a checkpoint's tensor, read in pieces."""
    digester = TensorDigester(tensor.nbytes, get_backend().leaf_hashes)
    for start in range(0, tensor.nbytes, PIECE_BYTES):
        digester.add(checkpoint.read(tensor, start, min(PIECE_BYTES, tensor.nbytes - start)))
    return digester.digest()


@dataclass(slots=True)
class BaseHashes:
    """Hashes of a base's tensors, for encoding several checkpoints against it.

    They take 8 bytes per 16 KiB of the base.

    Attributes:
        leaves: Leaf hashes by tensor name.
        digests: Digests by tensor name.
    """

    leaves: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)


def checkpoint_state(checkpoint: Checkpoint, known: dict[str, bytes] | None = None) -> str:
    """Return the state digest of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        known: Digests by tensor name, for tensors that need not be read. Receives the others.
    """
    digests = {} if known is None else known
    for t in checkpoint.tensors.values():
        if t.name not in digests:
            digests[t.name] = tensor_digest(checkpoint, t)
    return state_digest(
        TensorIdentity(t.name, t.dtype, t.shape, digests[t.name])
        for t in checkpoint.tensors.values()
    )


def check_origins(
    reader: DeltaReader, base: Checkpoint, threads: int, *, include_covered: bool
) -> None:
    """Check the digests of source tensors.

    Args:
        reader: The delta.
        base: The checkpoint to check. Its names, dtypes and lengths match the delta.
        threads: Threads to read on.
        include_covered: Whether to check also the sources whose words the digests of chunks cover
            completely. Decoding checks those.

    Raises:
        BaseMismatchError: A digest differs.
    """
    covered: Counter[int] = Counter()
    for chunk in reader.index.chunks:
        if chunk.coding is not ChunkCoding.WHOLE:
            covered[chunk.tensor] += chunk.length
    expected = {
        t.origin: t.base_digest or t.tuned_digest
        for number, t in enumerate(reader.index.tensors)
        if t.kind is Kind.SAME
        or (t.kind is Kind.DELTA and (include_covered or covered[number] < t.shared))
    }
    _compare(reader, base, expected, threads)


def check_small_origins(reader: DeltaReader, base: Checkpoint, count: int, nbytes: int) -> None:
    """Check the digests of a few small source tensors.

    This distinguishes bases of one architecture without a full download.

    Args:
        reader: The delta.
        base: The checkpoint to check. Its names, dtypes and lengths match the delta.
        count: Maximum number of tensors to read; the largest come first.
        nbytes: Maximum size of a tensor to read.

    Raises:
        BaseMismatchError: A digest differs.
    """
    expected = {
        t.origin: t.base_digest or t.tuned_digest
        for t in reader.index.tensors
        if t.kind in (Kind.SAME, Kind.DELTA)
    }
    small = [name for name in expected if base.tensors[name].nbytes <= nbytes]
    largest = sorted(small, key=lambda name: (-base.tensors[name].nbytes, name))[:count]
    _compare(reader, base, {name: expected[name] for name in largest}, count)


def _compare(
    reader: DeltaReader, base: Checkpoint, expected: dict[str, bytes], threads: int
) -> None:
    """Compare digests of base tensors with the expected ones.

    Raises:
        BaseMismatchError: A digest differs.
    """
    sources = [base.tensors[name] for name in expected]

    def digest(source: TensorRef) -> tuple[str, bytes]:
        return source.name, tensor_digest(base, source)

    for name, actual in ordered_map(digest, sources, threads):
        if actual != expected[name]:
            raise wrong_base(reader, base.path, name, "has different values")
