"""Tuned models of transformers, loaded from base and delta. Importing this imports transformers."""

from rlsparse_store.integrations.transformers.from_pretrained import enable_transformers
from rlsparse_store.integrations.transformers.load import from_delta

__all__ = ["enable_transformers", "from_delta"]
