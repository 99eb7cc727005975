"""Digests of checkpoints on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.delta.sources import PIECE_BYTES
from rlsparse_store.digest import TensorDigester, TensorIdentity, state_digest

if TYPE_CHECKING:
    from rlsparse_store.checkpoint import Checkpoint, TensorRef

__all__ = ["checkpoint_state", "tensor_digest"]


def tensor_digest(checkpoint: Checkpoint, tensor: TensorRef) -> bytes:
    """The digest of a tensor of a checkpoint, read piece by piece."""
    digester = TensorDigester(tensor.nbytes)
    for start in range(0, tensor.nbytes, PIECE_BYTES):
        digester.add(checkpoint.read(tensor, start, min(PIECE_BYTES, tensor.nbytes - start)))
    return digester.digest()


def checkpoint_state(checkpoint: Checkpoint, known: dict[str, bytes] | None = None) -> str:
    """The state digest of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        known: Digests of some of its tensors, which need not be read again.
    """
    known = known or {}
    return state_digest(
        TensorIdentity(t.name, t.dtype, t.shape, known.get(t.name) or tensor_digest(checkpoint, t))
        for t in checkpoint.tensors.values()
    )
