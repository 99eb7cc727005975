"""Tuned models of transformers, loaded from base and delta. Importing this imports transformers."""

from rlsparse_store.integrations.transformers.automatic import enable_transformers
from rlsparse_store.integrations.transformers.loading import from_delta
from rlsparse_store.integrations.transformers.views import checkpoint_views

__all__ = ["checkpoint_views", "enable_transformers", "from_delta"]
