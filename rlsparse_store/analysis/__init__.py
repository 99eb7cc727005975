"""What researchers measure of updates: base and tuned values side by side."""

from rlsparse_store.analysis.measures import Measures, measure_tensor
from rlsparse_store.analysis.pairs import Pair, SharedTensor, open_pair, over_base
from rlsparse_store.analysis.report import (
    SCOPES,
    ExponentTable,
    TensorValues,
    ValueGroup,
    ValueReport,
    measure_values,
)

__all__ = [
    "SCOPES",
    "ExponentTable",
    "Measures",
    "Pair",
    "SharedTensor",
    "TensorValues",
    "ValueGroup",
    "ValueReport",
    "measure_tensor",
    "measure_values",
    "open_pair",
    "over_base",
]
