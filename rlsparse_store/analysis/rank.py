"""Ranks of updates, of some matrices: each is held as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.analysis.values import is_numeric, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor

__all__ = ["MatrixRank", "sampled_ranks"]

SAMPLES: Final = 8
"""Matrices, evenly spaced over the checkpoint."""

LARGEST_SIDE: Final = 4096
"""The longer side of a matrix whose singular values are computed."""

ENERGY: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRank:
    """The rank of the update of one matrix.

    Attributes:
        name: The tensor.
        shape: Its dimensions, in elements.
        rank: Singular values above NumPy's default threshold, of the update in float32.
        share: rank / the shorter side, as the papers average it.
        energy_rank: Singular values that hold 99 % of the sum of squares.
        stable_rank: Squared Frobenius norm over the squared largest singular value.
    """

    name: str
    shape: list[int]
    rank: int
    share: float
    energy_rank: int
    stable_rank: float


def sampled_ranks(pair: Pair, names: Sequence[str]) -> list[MatrixRank]:
    """Ranks of some of these tensors.

    Args:
        pair: Base and tuned.
        names: Tensors that changed.
    """
    fitting = [name for name in names if _fits(pair.tensors[name])]
    step = max(1, len(fitting) // SAMPLES)
    found = (_rank(pair, pair.tensors[name]) for name in fitting[::step][:SAMPLES])
    return [rank for rank in found if rank is not None]


def _fits(tensor: SharedTensor) -> bool:
    return (
        len(tensor.shape) == 2
        and not tensor.is_resized
        and max(tensor.shape) <= LARGEST_SIDE
        and is_numeric(tensor.dtype)
    )


def _rank(pair: Pair, tensor: SharedTensor) -> MatrixRank | None:
    """The rank of an update; ``None`` if it has values that are not finite."""
    with np.errstate(all="ignore"):
        parts = [
            values_of(block.tuned, tensor.dtype) - values_of(block.base, tensor.dtype)
            for block in pair.blocks(tensor.name)
        ]
        update = np.concatenate(parts).astype(np.float32).reshape(tensor.shape)
    if not np.isfinite(update).all():
        return None
    singular = np.linalg.svd(update, compute_uv=False)
    threshold = singular[0] * max(update.shape) * np.finfo(np.float32).eps
    rank = int(np.count_nonzero(singular > threshold))
    energy = np.cumsum(np.square(singular, dtype=np.float64))
    return MatrixRank(
        name=tensor.name,
        shape=list(tensor.shape),
        rank=rank,
        share=rank / min(update.shape),
        energy_rank=int(np.searchsorted(energy, ENERGY * energy[-1])) + 1,
        stable_rank=float(energy[-1] / max(float(singular[0]) ** 2, 1e-300)),
    )
