"""Measurements of updates: sparsity, overlap, series, masks, and differences of values."""

from rlsparse_store.analysis.encodings import Encoding
from rlsparse_store.analysis.masks import (
    COMBINATIONS,
    CONTROLS,
    MASK_KEY,
    MaskReport,
    count_ones,
    write_mask,
)
from rlsparse_store.analysis.match import (
    MATCH_TOLERANCES,
    MatchReport,
    MatchShares,
    match_checkpoints,
)
from rlsparse_store.analysis.measures import Measures, measure_tensor
from rlsparse_store.analysis.overlap import (
    BASELINES,
    CompareReport,
    Overlap,
    PairOverlap,
    compare_deltas,
)
from rlsparse_store.analysis.rank import MatrixRank
from rlsparse_store.analysis.series import SeriesReport, SeriesStep, measure_series
from rlsparse_store.analysis.tensor_pairs import (
    Pair,
    SharedTensor,
    Unmatched,
    open_pair,
    over_base,
)
from rlsparse_store.analysis.value_report import (
    SCOPES,
    ExponentTable,
    RowCount,
    TensorValues,
    ValueGroup,
    ValueReport,
    measure_values,
)

__all__ = [
    "BASELINES",
    "COMBINATIONS",
    "CONTROLS",
    "MASK_KEY",
    "MATCH_TOLERANCES",
    "SCOPES",
    "CompareReport",
    "Encoding",
    "ExponentTable",
    "MaskReport",
    "MatchReport",
    "MatchShares",
    "MatrixRank",
    "Measures",
    "Overlap",
    "Pair",
    "PairOverlap",
    "RowCount",
    "SeriesReport",
    "SeriesStep",
    "SharedTensor",
    "TensorValues",
    "Unmatched",
    "ValueGroup",
    "ValueReport",
    "compare_deltas",
    "count_ones",
    "match_checkpoints",
    "measure_series",
    "measure_tensor",
    "measure_values",
    "open_pair",
    "over_base",
    "write_mask",
]
