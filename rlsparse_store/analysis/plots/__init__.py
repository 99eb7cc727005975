"""Pictures of updates, drawn with matplotlib, and an HTML page that shows them."""

from rlsparse_store.analysis.plots.charts import (
    change_by_exponent,
    density_by_depth,
    size_comparison,
    step_histogram,
)
from rlsparse_store.analysis.plots.heatmap import density_map
from rlsparse_store.analysis.plots.page import write_page

__all__ = [
    "change_by_exponent",
    "density_by_depth",
    "density_map",
    "size_comparison",
    "step_histogram",
    "write_page",
]
