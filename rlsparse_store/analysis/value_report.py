"""The report of an update's values: sums, groups, and what to be wary of."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.analysis.cautions import find_cautions
from rlsparse_store.analysis.encodings import Encoding, compressed_encodings, encodings_of
from rlsparse_store.analysis.measures import (
    TOLERANCES,
    Lines,
    Measures,
    measure_tensor,
    step_labels,
)
from rlsparse_store.analysis.rank import MatrixRank, sampled_ranks
from rlsparse_store.analysis.values import CASTS
from rlsparse_store.delta.module_names import block_of
from rlsparse_store.delta.run import natural_order
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor, Unmatched

__all__ = [
    "SCOPES",
    "ExponentTable",
    "RowCount",
    "TensorValues",
    "ValueGroup",
    "ValueReport",
    "measure_values",
]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

SCOPES: Final = ("matched", "all", "linear")
"""What is counted: what both sides have; all of the tuned side; matrices in layers only."""

_EXPERT: Final = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorValues:
    """One tensor.

    Attributes:
        name: Its name.
        dtype: The dtype compared.
        shape: Its dimensions, in elements.
        words: Words compared.
        changed: Words whose bits differ.
        density: changed / words.
        delta_norm: Frobenius norm of the update.
        base_norm: Frobenius norm of the base's part.
        largest_delta: Largest magnitude of a difference.
        rows_touched: Rows with a change; ``None`` where rows mean nothing.
        rows: Rows compared.
        columns_touched: Columns with a change.
        columns: Columns.
    """

    name: str
    dtype: str
    shape: list[int]
    words: int
    changed: int
    density: float
    delta_norm: float
    base_norm: float
    largest_delta: float
    rows_touched: int | None
    rows: int | None
    columns_touched: int | None
    columns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueGroup:
    """Sums over the tensors of a group.

    Attributes:
        name: The group.
        tensors: Its tensors.
        words: Their words.
        changed: Words whose bits differ.
        density: changed / words, so that every weight counts the same.
        mean_density: Mean over tensors of their densities, as the papers' scripts print it.
        inactive: Tensors without any change.
    """

    name: str
    tensors: int
    words: int
    changed: int
    density: float
    mean_density: float
    inactive: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCount:
    """One row of a tensor.

    Attributes:
        tensor: The tensor.
        row: The row, from 0.
        changed: Its changed words.
        words: Its words.
    """

    tensor: str
    row: int
    changed: int
    words: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentTable:
    """Changes by the base's exponent, of the dtype that most words have.

    Attributes:
        dtype: That dtype.
        exponents: Powers of two; the first stands for zeros and subnormals too.
        words: Words of the base with each.
        changed: Those of them that changed.
        half_magnitude: Magnitude at which the probability of a change falls to a half, found by
            interpolation; ``None`` if it does not.
    """

    dtype: str
    exponents: list[int]
    words: list[int]
    changed: list[int]
    half_magnitude: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueReport:
    """What an update did to values.

    Attributes:
        scope: What is counted, one of :data:`SCOPES`.
        words: Words counted: the denominator of every share.
        compared: Words that both sides have.
        tensors_compared: Tensors they are of.
        dtypes: Words compared by dtype.
        tail_words: Words of compared tensors that only the tuned side has.
        unmatched: Tensors that only one side has or that cannot be compared, and why.
        tied: Tensors that are others' bytes again, which count once.
        changed: Words whose bits differ; with scope ``all``, those of the tuned side alone too.
        density: changed / words.
        mean_density: Mean over tensors of their densities.
        inactive_ratio: Share of tensors without any change.
        unchanged_within: Share of words that differ by at most each tolerance.
        unchanged_relative: Share of words that differ by at most 1e-3 of the larger magnitude.
        sign_flips: Words whose sign differs.
        exponent_moves: Words whose exponent differs.
        not_numbers: NaNs among changed words of the tuned side.
        negative_zeros: Negative zeros among them.
        step_labels: Classes of steps.
        steps: Changed words of each.
        delta_norm: Frobenius norm of the update.
        relative_norm: The same over the base's norm; ``None`` if that is zero.
        mean_delta: Mean magnitude of the differences of changed words.
        rms_delta: Their root mean square.
        largest_delta: Their largest magnitude.
        cast_density: Share of words that would differ after casting both sides to a dtype.
        exponents: Changes by exponent, if there are floating-point words.
        row_density: Least, median and largest share of changed words of a row, over all matrices.
        column_density: The same of columns.
        rows_touched: Share of rows with a change.
        columns_touched: Share of columns with a change.
        top_rows: The rows with the most changes.
        encodings: Bytes under encodings that others have published.
        ranks: Ranks of sampled updates, if asked for.
        cautions: What to be wary of.
        layers: Sums by layer.
        modules: Sums by kind of module.
        blocks: Sums by kind of block: attention, mlp, norm, embedding, head.
        layer_modules: Sums by layer and kind of module.
        experts: Sums by expert, of mixtures of them.
        tensors: Every tensor.
    """

    scope: str
    words: int
    compared: int
    tensors_compared: int
    dtypes: dict[str, int]
    tail_words: int
    unmatched: list[Unmatched]
    tied: list[str]
    changed: int
    density: float
    mean_density: float
    inactive_ratio: float
    unchanged_within: dict[str, float]
    unchanged_relative: float
    sign_flips: int
    exponent_moves: int
    not_numbers: int
    negative_zeros: int
    step_labels: list[str]
    steps: list[int]
    delta_norm: float
    relative_norm: float | None
    mean_delta: float
    rms_delta: float
    largest_delta: float
    cast_density: dict[str, float]
    exponents: ExponentTable | None
    row_density: list[float]
    column_density: list[float]
    rows_touched: float
    columns_touched: float
    top_rows: list[RowCount]
    encodings: list[Encoding]
    ranks: list[MatrixRank]
    cautions: list[str]
    layers: list[ValueGroup]
    modules: list[ValueGroup]
    blocks: list[ValueGroup]
    layer_modules: list[ValueGroup]
    experts: list[ValueGroup]
    tensors: list[TensorValues]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema; what is not finite is null."""
        fields: dict[str, Any] = _finite(asdict(self))
        return {"schema_version": SCHEMA_VERSION, **fields}


@dataclass(frozen=True, slots=True)
class _Measured:
    """A tensor and what was measured of it."""

    tensor: SharedTensor
    measures: Measures
    lines: Lines | None


def measure_values(
    pair: Pair,
    *,
    scope: str = "matched",
    align_rows: bool = True,
    rank: bool = False,
    compressed: bool = False,
    delta_bytes: int | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> ValueReport:
    """Measure what an update did to values, reading both sides once.

    Memory is bounded by a chunk for each thread, but for ranks, which need whole matrices.

    Args:
        pair: Base and tuned.
        scope: What is counted, one of :data:`SCOPES`.
        align_rows: Whether tensors whose first dimension grew or shrank are compared over the rows
            that both have; otherwise they are listed as unmatched.
        rank: Whether the ranks of some updates are computed.
        compressed: Whether sizes under encodings that end with zstd are measured, too: both sides
            are read and compressed once more.
        delta_bytes: What the delta takes, if known, to be listed beside other encodings.
        threads: Threads to work on; all processors by default.
        progress: Called with bytes done and bytes in all.

    Raises:
        ValueError: The scope is unknown.
        FormatError: The delta is damaged, or the base is not the right one.

    Example:
        >>> with over_base("qwen-grpo-delta", "qwen-base") as pair:  # doctest: +SKIP
        ...     measure_values(pair).unchanged_within["1e-05"]
        0.841
    """
    if scope not in SCOPES:
        msg = f"scope={scope!r}: choose one of {', '.join(SCOPES)}"
        raise ValueError(msg)
    workers = resolve_threads(threads)
    pair.keep_only(lambda t: _is_counted(t, scope, align_rows=align_rows))

    def measure(tensor: SharedTensor) -> _Measured:
        return _Measured(tensor, *measure_tensor(pair, tensor))

    measured = pair.map(measure, workers, progress)
    ranks = sampled_ranks(pair, measured_names(measured)) if rank else []
    counted = [(m.tensor, m.measures) for m in measured]
    encodings = encodings_of(counted, delta_bytes)
    if compressed:
        encodings += compressed_encodings(pair, counted, workers)
    return _report(pair, measured, scope, ranks, encodings)


def _is_counted(tensor: SharedTensor, scope: str, *, align_rows: bool) -> str:
    """Why a tensor is left out; empty if it is not."""
    if tensor.is_resized and not align_rows:
        return "resized"
    is_matrix = len(tensor.shape) == 2 and tensor.layer != "other"
    return "out of scope" if scope == "linear" and not is_matrix else ""


def measured_names(measured: list[_Measured]) -> list[str]:
    """The names of the tensors that changed."""
    return [m.tensor.name for m in measured if m.measures.changed]


def _report(
    pair: Pair,
    measured: list[_Measured],
    scope: str,
    ranks: list[MatrixRank],
    encodings: list[Encoding],
) -> ValueReport:
    total = Measures()
    for m in measured:
        total += m.measures
    tail = sum(m.tensor.tail for m in measured)
    alone = tail if scope == "all" else 0
    if scope == "all":
        alone += sum(u.elements for u in pair.unmatched if u.reason != "removed")
    words, changed = total.words + alone, total.changed + alone
    tensors = [_tensor(m) for m in measured]
    delta_norm, base_norm = total.square_delta**0.5, total.square_base**0.5
    finite = max(1, total.changed)
    dtypes: dict[str, int] = {}
    for m in measured:
        code = m.tensor.dtype.code
        dtypes[code] = dtypes.get(code, 0) + m.measures.words
    lines = [m.lines for m in measured if m.lines is not None]
    rows, columns = _line_figures(lines)
    return ValueReport(
        scope=scope,
        words=words,
        compared=total.words,
        tensors_compared=len(measured),
        dtypes=dtypes,
        tail_words=tail,
        unmatched=pair.unmatched,
        tied=pair.tied,
        changed=changed,
        density=_ratio(changed, words),
        mean_density=_mean([t.density for t in tensors]),
        inactive_ratio=_mean([float(t.changed == 0) for t in tensors]),
        unchanged_within={
            f"{tolerance:g}": _ratio(int(count), words)
            for tolerance, count in zip(TOLERANCES, total.within, strict=True)
        },
        unchanged_relative=_ratio(total.within_relative, words),
        sign_flips=total.sign_flips,
        exponent_moves=total.exponent_moves,
        not_numbers=total.not_numbers,
        negative_zeros=total.negative_zeros,
        step_labels=step_labels(),
        steps=total.steps.tolist(),
        delta_norm=delta_norm,
        relative_norm=delta_norm / base_norm if base_norm else None,
        mean_delta=total.absolute_delta / finite,
        rms_delta=(total.square_delta / finite) ** 0.5,
        largest_delta=total.largest_delta,
        cast_density={
            code: _ratio(int(count), total.words)
            for code, count in zip(CASTS, total.cast_changed, strict=True)
        },
        exponents=_exponents(measured, dtypes),
        row_density=rows[0],
        column_density=columns[0],
        rows_touched=rows[1],
        columns_touched=columns[1],
        top_rows=_top_rows(measured),
        encodings=encodings,
        ranks=ranks,
        cautions=find_cautions([(m.tensor, m.measures) for m in measured], pair.unmatched),
        layers=_groups(measured, lambda t: t.layer),
        modules=_groups(measured, lambda t: t.module),
        blocks=_groups(measured, lambda t: block_of(t.name)),
        layer_modules=_groups(measured, lambda t: f"{t.layer} {t.module}"),
        experts=_groups(measured, _expert),
        tensors=tensors,
    )


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON has no one type
    """The value without infinities and NaNs, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _expert(tensor: SharedTensor) -> str | None:
    found = _EXPERT.search(tensor.name)
    return found[1] if found else None


def _tensor(m: _Measured) -> TensorValues:
    lines = m.lines
    return TensorValues(
        name=m.tensor.name,
        dtype=m.tensor.dtype.code,
        shape=list(m.tensor.shape),
        words=m.measures.words,
        changed=m.measures.changed,
        density=_ratio(m.measures.changed, m.measures.words),
        delta_norm=m.measures.square_delta**0.5,
        base_norm=m.measures.square_base**0.5,
        largest_delta=m.measures.largest_delta,
        rows_touched=None if lines is None else int(np.count_nonzero(lines.rows)),
        rows=None if lines is None else lines.rows.size,
        columns_touched=None if lines is None else int(np.count_nonzero(lines.columns)),
        columns=None if lines is None else lines.columns.size,
    )


def _groups(
    measured: list[_Measured], key: Callable[[SharedTensor], str | None]
) -> list[ValueGroup]:
    members: dict[str, list[Measures]] = {}
    for m in measured:
        name = key(m.tensor)
        if name is not None:
            members.setdefault(name, []).append(m.measures)

    def group(name: str) -> ValueGroup:
        mine = members[name]
        words, changed = sum(m.words for m in mine), sum(m.changed for m in mine)
        return ValueGroup(
            name=name,
            tensors=len(mine),
            words=words,
            changed=changed,
            density=_ratio(changed, words),
            mean_density=_mean([_ratio(m.changed, m.words) for m in mine]),
            inactive=sum(m.changed == 0 for m in mine),
        )

    return [group(name) for name in sorted(members, key=natural_order)]


def _line_figures(
    lines: list[Lines],
) -> tuple[tuple[list[float], float], tuple[list[float], float]]:
    """Least, median and largest density of rows, and the share of rows touched; and of columns."""
    if not lines:
        return ([], 0.0), ([], 0.0)
    rows = np.concatenate([found.rows / max(1, found.columns.size) for found in lines])
    columns = np.concatenate([found.columns / max(1, found.rows.size) for found in lines])
    return _spread(rows), _spread(columns)


TOP_ROWS: Final = 10


def _top_rows(measured: list[_Measured]) -> list[RowCount]:
    """The rows with the most changed words; of equals, the first."""
    found: list[RowCount] = []
    for m in measured:
        if m.lines is None:
            continue
        rows = m.lines.rows
        for row in np.argsort(-rows, kind="stable")[:TOP_ROWS].tolist():
            if rows[row]:
                words = m.lines.columns.size
                found.append(
                    RowCount(tensor=m.tensor.name, row=row, changed=int(rows[row]), words=words)
                )
    return sorted(found, key=lambda r: (-r.changed, r.tensor, r.row))[:TOP_ROWS]


def _spread(densities: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[list[float], float]:
    if not densities.size:
        return [], 0.0
    figures = [float(f(densities)) for f in (np.min, np.median, np.max)]
    return figures, float(np.mean(densities > 0))


def _exponents(measured: list[_Measured], dtypes: dict[str, int]) -> ExponentTable | None:
    """The table of the floating-point dtype that most words have."""
    tables: dict[str, Any] = {}
    found = {}
    for m in measured:
        if m.measures.by_exponent is not None:
            code = m.tensor.dtype.code
            found[code] = m.tensor.dtype
            tables[code] = tables.get(code, 0) + m.measures.by_exponent
    if not tables:
        return None
    code = max(tables, key=lambda name: dtypes[name])
    words, changed = tables[code]
    bias = words.size // 2 - 1
    used = np.flatnonzero(words)
    used = np.arange(used[0], used[-1] + 1) if used.size else used
    exponents = [int(place) - bias for place in used]
    return ExponentTable(
        dtype=code,
        exponents=exponents,
        words=words[used].tolist(),
        changed=changed[used].tolist(),
        half_magnitude=_half_magnitude(exponents, words[used], changed[used]),
    )


_ENOUGH: Final = 100
"""Words from which a probability is read off."""


def _half_magnitude(exponents: list[int], words: Any, changed: Any) -> float | None:  # noqa: ANN401
    """Where the probability of a change falls to a half, between two powers of two."""
    last = None
    for exponent, n, k in zip(exponents, words.tolist(), changed.tolist(), strict=True):
        if n < _ENOUGH:
            continue
        probability = k / n
        if last is not None and last[1] >= 0.5 > probability:
            share = (last[1] - 0.5) / (last[1] - probability)
            # The words of an exponent lie about half a power above it.
            return float(2.0 ** (last[0] + share * (exponent - last[0]) + 0.5))
        last = exponent, probability
    return None
