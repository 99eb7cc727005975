"""Ranks of the updates of sampled matrices. Each matrix is held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.analysis.numeric import as_floats, is_numeric
from rlsparse_store.delta.html_table import SummaryRepr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor
    from rlsparse_store.delta.html_table import Rows

__all__ = ["MatrixRank", "sampled_ranks"]

SAMPLES: Final = 8
"""Number of matrices, evenly spaced over the checkpoint."""

LARGEST_SIDE: Final = 4096
"""Longest side of a sampled matrix."""

ENERGY: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MatrixRank(SummaryRepr):
    """Rank of the update of one matrix.

    Attributes:
        name: Name of the tensor.
        shape: Dimensions in elements.
        rank: Singular values of the float32 update above the default threshold of
            ``numpy.linalg.matrix_rank``.
        share: rank / length of the shorter side, as the papers average it.
        energy_rank: Largest singular values that hold 99 % of the sum of squares.
        stable_rank: Squared Frobenius norm / squared largest singular value.
    """

    name: str
    shape: list[int]
    rank: int
    share: float
    energy_rank: int
    stable_rank: float

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "shape", str(self.shape)
        yield "rank", self.rank
        yield "energy_rank", self.energy_rank
        yield "stable_rank", self.stable_rank


def sampled_ranks(pair: Pair, names: Sequence[str]) -> list[MatrixRank]:
    """Ranks of the updates of up to :data:`SAMPLES` matrices.

    Args:
        pair: The pair.
        names: Names of tensors that changed.
    """
    eligible = [name for name in names if _is_eligible(pair.tensors[name])]
    step = max(1, len(eligible) // SAMPLES)
    ranks = (_rank(pair, pair.tensors[name]) for name in eligible[::step][:SAMPLES])
    return [rank for rank in ranks if rank is not None]


def _is_eligible(tensor: SharedTensor) -> bool:
    return (
        len(tensor.shape) == 2
        and not tensor.is_resized
        and max(tensor.shape) <= LARGEST_SIDE
        and is_numeric(tensor.dtype)
    )


def _rank(pair: Pair, tensor: SharedTensor) -> MatrixRank | None:
    """The rank of an update; ``None`` if some of its values are not finite."""
    with np.errstate(all="ignore"):
        parts = [
            as_floats(block.tuned, tensor.dtype) - as_floats(block.base, tensor.dtype)
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
