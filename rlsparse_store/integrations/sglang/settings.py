"""``RLSPARSE_SGLANG``: the environment variable with the places of a server.

SGLang's own options refuse keys that they do not know.
"""

from __future__ import annotations

import json
import os
from typing import Final

from rlsparse_store.errors import PlaceError
from rlsparse_store.integrations.serving.places import ServedPlaces

__all__ = ["VARIABLE", "configured_places", "is_configured"]

VARIABLE: Final = "RLSPARSE_SGLANG"
"""Environment variable: a JSON object with ``base``, ``base_revision`` and ``roots``."""

_OTHERS: Final = ("delta", "delta_revision", "subfolder")
"""Places that other engines take: SGLang is started with the delta itself."""


def is_configured() -> bool:
    """Whether the variable is set."""
    return VARIABLE in os.environ


def configured_places() -> ServedPlaces:
    """The places that the variable names.

    Raises:
        PlaceError: It is not such an object.

    Example:
        >>> os.environ["RLSPARSE_SGLANG"] = '{"roots": ["/runs/grpo"]}'
        >>> configured_places().roots
        ['/runs/grpo']
        >>> del os.environ["RLSPARSE_SGLANG"]
    """
    try:
        values = json.loads(os.environ.get(VARIABLE, "{}"))
    except ValueError as error:
        msg = f"{VARIABLE}: is not JSON: {error}"
        raise PlaceError(msg) from error
    if not isinstance(values, dict):
        msg = f"{VARIABLE}: must be a JSON object"
        raise PlaceError(msg)
    others = [name for name in _OTHERS if name in values]
    places = ServedPlaces.take(VARIABLE, values)
    if unknown := sorted({*others, *values}):
        msg = f"{VARIABLE}: unknown {', '.join(unknown)}"
        raise PlaceError(msg)
    return places
