"""DTensors, without importing their module."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_dtensor"]


def is_dtensor(tensor: Any) -> bool:  # noqa: ANN401 - any value of a state dict
    """Return whether a tensor is a DTensor: each rank holds a part of it."""
    # Importing the module takes most of a second, and a DTensor exists only if it was imported.
    dtensor = sys.modules.get("torch.distributed.tensor")
    return dtensor is not None and isinstance(tensor, dtensor.DTensor)
