"""Whether training a subnetwork gives the model that training everything gives."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.analysis.tensor_pairs import open_pair, over_base
from rlsparse_store.analysis.values import is_numeric, values_of
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = ["MATCH_TOLERANCES", "MatchReport", "MatchShares", "match_checkpoints"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

MATCH_TOLERANCES: Final = ("bits", "1e-05", "0.0001")
"""Equal bits, then differences of at most so much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchShares:
    """Shares of words that match, by :data:`MATCH_TOLERANCES`; ``None`` where there are none.

    Attributes:
        words: Words compared.
        full_and_sub: Of the full and the subnetwork's model.
        base_and_full: Of the base and the full model: what doing nothing would reach.
    """

    words: int
    full_and_sub: dict[str, float | None]
    base_and_full: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchReport:
    """A full and a subnetwork's training from one base.

    Attributes:
        everything: Over all words.
        mask: Over the words that full training changed.
        complement: Over the others.
        sub_outside: Words outside the mask that the subnetwork's training changed.
        unmatched: Tensors that not both have alike, stored whole or removed; they do not count.
    """

    everything: MatchShares
    mask: MatchShares
    complement: MatchShares
    sub_outside: int
    unmatched: list[str]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def match_checkpoints(
    full: str | Path,
    sub: str | Path,
    base: str | Path,
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> MatchReport:
    """Compare two models tuned from one base, with the base as the control beside it.

    Args:
        full: A delta of the base or a checkpoint: trained in full.
        sub: Likewise: trained on a subnetwork only.
        base: The base, a checkpoint.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        NotFoundError: One is not there.
        BaseMismatchError: A delta is not of this base.

    Example:
        >>> match_checkpoints("full", "sub", "base").everything.full_and_sub  # doctest: +SKIP
        {'bits': 0.9896, '1e-05': 0.9992, '0.0001': 1.0}
    """
    with ExitStack() as stack:
        left = stack.enter_context(_open(full, base))
        right = stack.enter_context(_open(sub, base))
        alike = {
            name
            for name in left.tensors.keys() & right.tensors.keys()
            if _extent(left.tensors[name]) == _extent(right.tensors[name])
        }
        unmatched = sorted((left.names | right.names) - alike)
        left.keep_only(lambda t: "" if t.name in alike else "unmatched")
        counts = left.map(
            lambda tensor: _count(left, right, tensor), resolve_threads(threads), progress
        )
    total = np.sum(counts, axis=0) if counts else np.zeros((2, 2, 4), np.int64)
    outside, inside = total
    return MatchReport(
        everything=_shares(outside + inside),
        mask=_shares(inside),
        complement=_shares(outside),
        sub_outside=int(outside[0, 3] - outside[0, 0]),
        unmatched=unmatched,
    )


def _open(place: str | Path, base: str | Path) -> Pair:
    """A delta over the base, or a checkpoint beside it."""
    local = Path(place)
    is_checkpoint = local.exists() and not (local / DELTA_FOLDER).is_dir()
    return open_pair(base, place) if is_checkpoint else over_base(place, base)


def _extent(tensor: SharedTensor) -> tuple[str, int]:
    """What must be the same for two tensors to be walked side by side."""
    return tensor.source, tensor.words


def _count(left: Pair, right: Pair, tensor: SharedTensor) -> NDArray[np.int64]:
    """Matching words: outside and inside the mask; of full and sub, of base and full; by tolerance.

    The last of each row is how many there are.
    """
    total = np.zeros((2, 2, 4), np.int64)
    for full, sub in zip(left.blocks(tensor.name), right.blocks(tensor.name), strict=True):
        mask = full.base != full.tuned
        for which, chosen in enumerate((~mask, mask)):
            one, other, base = full.tuned[chosen], sub.tuned[chosen], full.base[chosen]
            total[which, 0] += _matching(one, other, tensor.dtype)
            total[which, 1] += _matching(base, one, tensor.dtype)
    return total


def _matching(one: Words, other: Words, dtype: Dtype) -> list[int]:
    equal = one == other
    same = int(np.count_nonzero(equal))
    # Integers that differ are apart by 1 at least, which float64 does not tell of large ones.
    if not is_numeric(dtype) or dtype.mantissa_bits is None or same == one.size:
        return [same, same, same, one.size]
    differing = ~equal
    with np.errstate(all="ignore"):
        left = values_of(one[differing], dtype).astype(np.float64)
        right = values_of(other[differing], dtype).astype(np.float64)
        near = [int(np.count_nonzero(np.abs(left - right) <= t)) for t in (1e-5, 1e-4)]
    return [same, same + near[0], same + near[1], one.size]


def _shares(counts: NDArray[np.int64]) -> MatchShares:
    words = int(counts[0, 3])

    def shares(row: NDArray[np.int64]) -> dict[str, float | None]:
        return {
            tolerance: int(count) / words if words else None
            for tolerance, count in zip(MATCH_TOLERANCES, row[:3], strict=True)
        }

    return MatchShares(words=words, full_and_sub=shares(counts[0]), base_and_full=shares(counts[1]))
