"""Pictures of deltas, by matplotlib."""

from rlsparse_store.plots.heatmap import density_map

__all__ = ["density_map"]
