"""Whether training a subnetwork gives the same model as training all weights."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np

from rlsparse_store.analysis.numeric import as_floats, is_numeric
from rlsparse_store.analysis.tensor_pairs import open_pair, over_base
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor
    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.dtypes import Dtype
    from rlsparse_store.format.words import Words

__all__ = ["MATCH_TOLERANCES", "MatchReport", "MatchShares", "match_checkpoints"]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

MATCH_TOLERANCES: Final = ("bits", "1e-05", "0.0001")
"""Criteria of a match: equal bits, or an absolute difference of at most 1e-5 or 1e-4."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MatchShares(SummaryRepr):
    """Shares of matching words by :data:`MATCH_TOLERANCES`; ``None`` if there are no words.

    Attributes:
        words: Words compared.
        full_and_sub: The fully trained model against the subnetwork.
        base_and_full: The base against the fully trained model: the score of no training.
    """

    words: int
    full_and_sub: dict[str, float | None]
    base_and_full: dict[str, float | None]

    def _summary(self) -> Rows:
        yield "words", self.words
        yield from ((f"full_and_sub[{t}]", share) for t, share in self.full_and_sub.items())
        yield from ((f"base_and_full[{t}]", share) for t, share in self.base_and_full.items())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MatchReport(SummaryRepr):
    """A fully trained model against one whose subnetwork was trained, both from one base.

    Attributes:
        everything: Shares over all words.
        mask: Shares over the words that full training changed.
        complement: Shares over all other words.
        sub_outside: Words outside the mask that training the subnetwork changed.
        unmatched: Tensors that are not compared: missing or of another extent on one side, stored
            whole, or removed.
    """

    everything: MatchShares
    mask: MatchShares
    complement: MatchShares
    sub_outside: int
    unmatched: list[str]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def _summary(self) -> Rows:
        yield "words", self.everything.words
        yield from ((f"full_and_sub[{t}]", s) for t, s in self.everything.full_and_sub.items())
        yield "sub_outside", self.sub_outside
        yield "unmatched", len(self.unmatched)
        yield from ((f"base_and_full[{t}]", s) for t, s in self.everything.base_and_full.items())


def match_checkpoints(  # noqa: PLR0913 - three ids with their revisions, and access to the Hub
    full: str | PathLike[str],
    sub: str | PathLike[str],
    *,
    base: str | PathLike[str],
    threads: int | None = None,
    progress: Progress = no_progress,
    full_revision: str | None = None,
    sub_revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> MatchReport:
    """Compare two models tuned from one base, with the base as the control.

    Args:
        full: The fully trained model: a delta of the base, or a local checkpoint.
        sub: The model whose subnetwork was trained, likewise.
        base: The base: a folder, a file or ``org/name[@revision]``.
        threads: Number of threads; by default one per processor.
        progress: Called with the bytes done and the bytes in total.
        full_revision: Branch, tag or commit of ``full`` on the Hub, if its id does not name one.
        sub_revision: The same of ``sub``.
        base_revision: The same of the base.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache of the Hub's files; by default the Hub client's.
        local_files_only: Read only what the cache has.

    Raises:
        NotFoundError: A model does not exist.
        BaseMismatchError: A delta has another base.

    Example:
        >>> match_checkpoints("full", "sub", base="base").everything.full_and_sub  # doctest: +SKIP
        {'bits': 0.9896, '1e-05': 0.9992, '0.0001': 1.0}
    """
    hub: HubArguments = {
        "base_revision": base_revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    with ExitStack() as stack:
        left = stack.enter_context(_open(full, full_revision, base, hub))
        right = stack.enter_context(_open(sub, sub_revision, base, hub))
        comparable = {
            name
            for name in left.tensors.keys() & right.tensors.keys()
            if _extent(left.tensors[name]) == _extent(right.tensors[name])
        }
        unmatched = sorted((left.names | right.names) - comparable)
        left.keep_only(lambda t: "" if t.name in comparable else "unmatched")
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


class HubArguments(TypedDict):
    """Arguments that :func:`open_pair` and :func:`over_base` share."""

    base_revision: str | None
    token: str | bool | None
    cache_dir: str | PathLike[str] | None
    local_files_only: bool


def _open(
    tuned: str | PathLike[str],
    revision: str | None,
    base: str | PathLike[str],
    hub: HubArguments,
) -> Pair:
    """A delta or a local checkpoint, with the base."""
    path = Path(tuned)
    if path.exists() and not (path / DELTA_FOLDER).is_dir():
        return open_pair(base, tuned, tuned_revision=revision, **hub)
    return over_base(tuned, base=base, revision=revision, **hub)


def _extent(tensor: SharedTensor) -> tuple[str, int]:
    """What two tensors must have in common to be compared."""
    return tensor.source, tensor.words


def _count(left: Pair, right: Pair, tensor: SharedTensor) -> NDArray[np.int64]:
    """Matching words, shape ``[2, 2, 4]``.

    The axes: outside or inside the mask; full and sub, or base and full; the tolerances, and last
    the number of words.
    """
    total = np.zeros((2, 2, 4), np.int64)
    for full, sub in zip(left.blocks(tensor.name), right.blocks(tensor.name), strict=True):
        mask = full.base != full.tuned
        for side, where in enumerate((~mask, mask)):
            full_words, sub_words, base_words = (
                full.tuned[where],
                sub.tuned[where],
                full.base[where],
            )
            total[side, 0] += _matching(full_words, sub_words, tensor.dtype)
            total[side, 1] += _matching(base_words, full_words, tensor.dtype)
    return total


def _matching(left: Words, right: Words, dtype: Dtype) -> list[int]:
    """Matching words by tolerance, and last the number of words."""
    is_equal = left == right
    equal = int(np.count_nonzero(is_equal))
    # Integers that differ do so by at least 1, but float64 cannot tell large ones apart.
    if not is_numeric(dtype) or dtype.mantissa_bits is None or equal == left.size:
        return [equal, equal, equal, left.size]
    with np.errstate(all="ignore"):
        left_values = as_floats(left[~is_equal], dtype).astype(np.float64)
        right_values = as_floats(right[~is_equal], dtype).astype(np.float64)
        distance = np.abs(left_values - right_values)
        close = [int(np.count_nonzero(distance <= tolerance)) for tolerance in (1e-5, 1e-4)]
    return [equal, equal + close[0], equal + close[1], left.size]


def _shares(counts: NDArray[np.int64]) -> MatchShares:
    words = int(counts[0, 3])

    def shares(row: NDArray[np.int64]) -> dict[str, float | None]:
        return {
            tolerance: int(count) / words if words else None
            for tolerance, count in zip(MATCH_TOLERANCES, row[:3], strict=True)
        }

    return MatchShares(words=words, full_and_sub=shares(counts[0]), base_and_full=shares(counts[1]))
