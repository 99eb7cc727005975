"""The report of an update: densities, differences of values, groups, sizes, and warnings."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np

from rlsparse_store.analysis.encodings import Encoding, compressed_encodings, encoding_sizes
from rlsparse_store.analysis.measures import (
    TOLERANCES,
    LineCounts,
    Measures,
    measure_tensor,
    step_labels,
)
from rlsparse_store.analysis.numeric import CASTS
from rlsparse_store.analysis.rank import MatrixRank, sampled_ranks
from rlsparse_store.analysis.sanity_checks import sanity_warnings
from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.module_names import block_of
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.pipeline.progress import Progress, no_progress
from rlsparse_store.pipeline.threads import resolve_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rlsparse_store.analysis.tensor_pairs import Pair, SharedTensor, Unmatched
    from rlsparse_store.delta.html_table import Rows

__all__ = [
    "SCOPES",
    "ExponentTable",
    "RowCount",
    "Scope",
    "TensorValues",
    "ValueGroup",
    "ValueReport",
    "measure_values",
]

SCHEMA_VERSION: Final = 1
"""Version of the JSON form, which specs/inspect.md describes."""

Scope: TypeAlias = Literal["matched", "all", "linear"]
"""The words that count: shared words; all words of the tuned checkpoint; matrices in layers."""

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

TOP_ROWS: Final = 10
"""Rows listed as those with the most changes."""

MIN_WORDS: Final = 100
"""Words of an exponent below which its probability of a change is too uncertain to use."""

_EXPERT: Final = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TensorValues(SummaryRepr):
    """One tensor.

    Attributes:
        name: Name of the tensor.
        dtype: Dtype of the comparison.
        shape: Dimensions in elements.
        words: Words compared.
        changed: Words whose bits differ.
        density: changed / words.
        delta_norm: Frobenius norm of the update.
        base_norm: Frobenius norm of the compared part of the base.
        largest_delta: Largest absolute difference.
        rows_touched: Rows with a change; ``None`` if the tensor has no rows.
        rows: Rows compared.
        columns_touched: Columns with a change.
        columns: Columns compared.
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

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "dtype", self.dtype
        yield "words", self.words
        yield "changed", self.changed
        yield "density", self.density
        yield "delta_norm", self.delta_norm


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ValueGroup(SummaryRepr):
    """Sums over a group of tensors.

    Attributes:
        name: Name of the group.
        tensors: Number of tensors.
        words: Words compared.
        changed: Words whose bits differ.
        density: changed / words: every weight counts the same.
        mean_density: Mean of the tensors' densities, as the papers' scripts print it.
        inactive: Tensors without a change.
    """

    name: str
    tensors: int
    words: int
    changed: int
    density: float
    mean_density: float
    inactive: int

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "tensors", self.tensors
        yield "words", self.words
        yield "density", self.density
        yield "mean_density", self.mean_density


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RowCount(SummaryRepr):
    """Changed words of one row.

    Attributes:
        tensor: Name of the tensor.
        row: Index of the row.
        changed: Changed words.
        words: Words of the row.
    """

    tensor: str
    row: int
    changed: int
    words: int

    def _summary(self) -> Rows:
        yield "tensor", self.tensor
        yield "row", self.row
        yield "changed", self.changed
        yield "words", self.words


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExponentTable(SummaryRepr):
    """Changes by exponent of the base, for the floating-point dtype with the most words.

    Attributes:
        dtype: The dtype.
        exponents: Powers of two, ascending; the first one includes zeros and subnormals.
        words: Words of the base by exponent.
        changed: Changed words by exponent.
        half_magnitude: Magnitude at which half of the words changed, interpolated; ``None`` if
            the share of changed words does not fall through a half.
    """

    dtype: str
    exponents: list[int]
    words: list[int]
    changed: list[int]
    half_magnitude: float | None

    def _summary(self) -> Rows:
        yield "dtype", self.dtype
        yield "half_magnitude", self.half_magnitude
        for exponent, words, changed in zip(self.exponents, self.words, self.changed, strict=True):
            yield f"P(change | 2^{exponent})", changed / words if words else None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ValueReport(SummaryRepr):
    """How an update changed the values of a checkpoint.

    Attributes:
        scope: The words that count, one of :data:`SCOPES`.
        words: Number of those words: the denominator of every share.
        compared: Words that both sides have.
        tensors_compared: Tensors that both sides have.
        dtypes: Compared words by dtype.
        tail_words: Words of compared tensors that only the tuned checkpoint has.
        unmatched: Tensors that are not compared, with reasons.
        tied: Tensors that alias another one. Their words count once.
        changed: Words whose bits differ; scope ``all`` adds the words of the tuned checkpoint
            that have no counterpart.
        density: changed / words.
        mean_density: Mean of the tensors' densities.
        inactive_ratio: Share of tensors without a change.
        unchanged_within: Share of words that differ by at most each tolerance.
        unchanged_relative: Share of words that differ by at most 1e-3 of the larger magnitude.
        sign_flips: Words whose sign differs.
        exponent_moves: Words whose exponent differs.
        not_numbers: Changed words that are NaN in the tuned checkpoint.
        negative_zeros: Changed words that are -0 in the tuned checkpoint.
        step_labels: Classes of signed steps, in representable values.
        steps: Changed words by class.
        delta_norm: Frobenius norm of the update.
        relative_norm: delta_norm / norm of the base; ``None`` if the base is zero.
        mean_delta: Mean absolute difference of changed words.
        rms_delta: Root mean square of the differences of changed words.
        largest_delta: Largest absolute difference.
        cast_density: Share of words that differ after casting both sides, by dtype of the cast.
        exponents: Changes by exponent; ``None`` without floating-point words.
        row_density: Minimum, median and maximum density of the rows of all matrices.
        column_density: Minimum, median and maximum density of their columns.
        rows_touched: Share of rows with a change.
        columns_touched: Share of columns with a change.
        top_rows: The rows with the most changed words.
        encodings: Sizes of the update under published encodings.
        ranks: Ranks of sampled updates, if requested.
        cautions: Warnings about the pair, such as a wrong base.
        layers: Sums by layer.
        modules: Sums by kind of module.
        blocks: Sums by kind of block: attention, mlp, norm, embedding, head.
        layer_modules: Sums by layer and kind of module.
        experts: Sums by expert of a mixture of experts.
        tensors: All tensors.
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
        """The report as JSON values, under a versioned schema. Infinities and NaNs are null."""
        fields: dict[str, Any] = _finite(asdict(self))
        return {"schema_version": SCHEMA_VERSION, **fields}

    def _summary(self) -> Rows:
        yield "words", self.words
        yield "changed", self.changed
        yield "density", self.density
        yield "tensors", self.tensors_compared
        yield "unmatched", len(self.unmatched)
        yield "cautions", len(self.cautions)
        yield "within 1e-5", self.unchanged_within.get("1e-05")
        yield "mean_density", self.mean_density
        yield "delta_norm", self.delta_norm
        yield "largest_delta", self.largest_delta
        yield from (("caution", caution) for caution in self.cautions)
        yield from ((f"density[{group.name}]", group.density) for group in self.modules)


@dataclass(frozen=True, slots=True)
class _MeasuredTensor:
    tensor: SharedTensor
    measures: Measures
    lines: LineCounts | None


def measure_values(
    pair: Pair,
    *,
    scope: Scope = "matched",
    align_rows: bool = True,
    rank: bool = False,
    compressed: bool = False,
    delta_bytes: int | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> ValueReport:
    """Measure how an update changed values, in one pass over both sides.

    Memory is bounded by a chunk per thread, except for ranks, which need whole matrices.

    Args:
        pair: The pair. Tensors that do not count become unmatched in it.
        scope: ``"matched"`` counts the words that both sides have, ``"all"`` adds the words that
            only the tuned checkpoint has as changed, ``"linear"`` counts matrices in layers.
        align_rows: Whether to compare tensors whose number of rows changed over the shared rows;
            otherwise they are unmatched.
        rank: Whether to compute ranks of some updates.
        compressed: Whether to measure encodings that end with zstd, in a second pass.
        delta_bytes: Size of the delta in bytes, to list it with the encodings.
        threads: Number of threads; by default one per processor.
        progress: Called with the bytes done and the bytes in total.

    Raises:
        ValueError: The scope is unknown.
        FormatError: The delta is damaged, or the base is the wrong one.

    Example:
        >>> with over_base("qwen-grpo-delta", base="qwen-base") as pair:  # doctest: +SKIP
        ...     measure_values(pair).unchanged_within["1e-05"]
        0.841
    """
    if scope not in SCOPES:
        msg = f"scope={scope!r}: choose one of {', '.join(SCOPES)}"
        raise ValueError(msg)
    workers = resolve_threads(threads)
    pair.keep_only(lambda t: _reason_against(t, scope, align_rows=align_rows))

    def measure(tensor: SharedTensor) -> _MeasuredTensor:
        return _MeasuredTensor(tensor, *measure_tensor(pair, tensor))

    measured = pair.map(measure, workers, progress)
    changed = [m.tensor.name for m in measured if m.measures.changed]
    ranks = sampled_ranks(pair, changed) if rank else []
    counted = [(m.tensor, m.measures) for m in measured]
    encodings = encoding_sizes(counted, delta_bytes)
    if compressed:
        encodings += compressed_encodings(pair, counted, workers)
    return _report(pair, measured, scope, ranks, encodings)


def _reason_against(tensor: SharedTensor, scope: Scope, *, align_rows: bool) -> str:
    """Why a tensor does not count; empty if it does."""
    if tensor.is_resized and not align_rows:
        return "resized"
    is_matrix = len(tensor.shape) == 2 and tensor.layer != "other"
    return "out of scope" if scope == "linear" and not is_matrix else ""


def _report(
    pair: Pair,
    measured: list[_MeasuredTensor],
    scope: Scope,
    ranks: list[MatrixRank],
    encodings: list[Encoding],
) -> ValueReport:
    total = Measures()
    for m in measured:
        total += m.measures
    tail = sum(m.tensor.tail for m in measured)
    tuned_only = tail if scope == "all" else 0
    if scope == "all":
        tuned_only += sum(u.elements for u in pair.unmatched if u.reason != "removed")
    words, changed = total.words + tuned_only, total.changed + tuned_only
    tensors = [_tensor_values(m) for m in measured]
    delta_norm, base_norm = total.square_delta**0.5, total.square_base**0.5
    divisor = max(1, total.changed)
    dtypes: dict[str, int] = {}
    for m in measured:
        code = m.tensor.dtype.code
        dtypes[code] = dtypes.get(code, 0) + m.measures.words
    lines = [m.lines for m in measured if m.lines is not None]
    rows = _density_spread([line.rows / max(1, line.columns.size) for line in lines])
    columns = _density_spread([line.columns / max(1, line.rows.size) for line in lines])
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
        mean_delta=total.absolute_delta / divisor,
        rms_delta=(total.square_delta / divisor) ** 0.5,
        largest_delta=total.largest_delta,
        cast_density={
            code: _ratio(int(count), total.words)
            for code, count in zip(CASTS, total.cast_changed, strict=True)
        },
        exponents=_exponent_table(measured, dtypes),
        row_density=rows[0],
        column_density=columns[0],
        rows_touched=rows[1],
        columns_touched=columns[1],
        top_rows=_top_rows(measured),
        encodings=encodings,
        ranks=ranks,
        cautions=sanity_warnings([(m.tensor, m.measures) for m in measured], pair.unmatched),
        layers=_groups(measured, lambda t: t.layer),
        modules=_groups(measured, lambda t: t.module),
        blocks=_groups(measured, lambda t: block_of(t.name)),
        layer_modules=_groups(measured, lambda t: f"{t.layer} {t.module}"),
        experts=_groups(measured, lambda t: _expert_of(t.name)),
        tensors=tensors,
    )


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The value with infinities and NaNs, which JSON lacks, replaced by ``None``."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _expert_of(name: str) -> str | None:
    match = _EXPERT.search(name)
    return match[1] if match else None


def _tensor_values(m: _MeasuredTensor) -> TensorValues:
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
    measured: list[_MeasuredTensor], key: Callable[[SharedTensor], str | None]
) -> list[ValueGroup]:
    """Sums by group, in natural order. ``key`` gives the group of a tensor, or ``None``."""
    members: dict[str, list[Measures]] = {}
    for m in measured:
        name = key(m.tensor)
        if name is not None:
            members.setdefault(name, []).append(m.measures)

    def group(name: str) -> ValueGroup:
        tensors = members[name]
        words, changed = sum(m.words for m in tensors), sum(m.changed for m in tensors)
        return ValueGroup(
            name=name,
            tensors=len(tensors),
            words=words,
            changed=changed,
            density=_ratio(changed, words),
            mean_density=_mean([_ratio(m.changed, m.words) for m in tensors]),
            inactive=sum(m.changed == 0 for m in tensors),
        )

    return [group(name) for name in sorted(members, key=natural_order)]


def _top_rows(measured: list[_MeasuredTensor]) -> list[RowCount]:
    """The rows with the most changed words, ties in order of tensor and row."""
    top: list[RowCount] = []
    for m in measured:
        if m.lines is None:
            continue
        rows, width = m.lines.rows, m.lines.columns.size
        top += [
            RowCount(tensor=m.tensor.name, row=row, changed=int(rows[row]), words=width)
            for row in np.argsort(-rows, kind="stable")[:TOP_ROWS].tolist()
            if rows[row]
        ]
    return sorted(top, key=lambda r: (-r.changed, r.tensor, r.row))[:TOP_ROWS]


def _density_spread(densities: list[NDArray[np.float64]]) -> tuple[list[float], float]:
    """Minimum, median and maximum of densities, and the share of them above zero."""
    joined = np.concatenate([np.zeros(0), *densities])
    if not joined.size:
        return [], 0.0
    spread = [float(f(joined)) for f in (np.min, np.median, np.max)]
    return spread, float(np.mean(joined > 0))


def _exponent_table(
    measured: list[_MeasuredTensor], dtypes: dict[str, int]
) -> ExponentTable | None:
    """The table of the floating-point dtype with the most words."""
    tables: dict[str, Any] = {}
    for m in measured:
        if m.measures.by_exponent is not None:
            code = m.tensor.dtype.code
            tables[code] = tables.get(code, 0) + m.measures.by_exponent
    if not tables:
        return None
    code = max(tables, key=lambda name: dtypes[name])
    words, changed = tables[code]
    bias = words.size // 2 - 1
    used = np.flatnonzero(words)
    used = np.arange(used[0], used[-1] + 1) if used.size else used
    exponents = [int(biased) - bias for biased in used]
    return ExponentTable(
        dtype=code,
        exponents=exponents,
        words=words[used].tolist(),
        changed=changed[used].tolist(),
        half_magnitude=_half_magnitude(exponents, words[used], changed[used]),
    )


def _half_magnitude(
    exponents: list[int], words: NDArray[np.int64], changed: NDArray[np.int64]
) -> float | None:
    """The magnitude at which the share of changed words falls through a half, interpolated."""
    previous = None
    for exponent, n, k in zip(exponents, words.tolist(), changed.tolist(), strict=True):
        if n < MIN_WORDS:
            continue
        probability = k / n
        if previous is not None and previous[1] >= 0.5 > probability:
            share = (previous[1] - 0.5) / (previous[1] - probability)
            # Words of an exponent are about half a power of two above it.
            return float(2.0 ** (previous[0] + share * (exponent - previous[0]) + 0.5))
        previous = exponent, probability
    return None
