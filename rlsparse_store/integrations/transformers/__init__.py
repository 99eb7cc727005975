"""Loading transformers models from a base and a delta. This module imports transformers."""

from rlsparse_store.integrations.transformers.from_pretrained import enable_transformers
from rlsparse_store.integrations.transformers.load import from_delta

__all__ = ["enable_transformers", "from_delta"]
