"""What researchers measure of updates: base and tuned values side by side."""

from rlsparse_store.analysis.measures import Measures, measure_tensor
from rlsparse_store.analysis.pairs import Pair, SharedTensor, open_pair, over_base

__all__ = ["Measures", "Pair", "SharedTensor", "measure_tensor", "open_pair", "over_base"]
