"""Old homes of names, kept for one release."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["moved"]


def moved(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds names in their new homes, with a warning.

    Args:
        module: The old module.
        homes: ``module.name`` within this package, by old name.
    """

    def find(name: str) -> Any:  # noqa: ANN401 - whatever has the name
        if name not in homes:
            msg = f"module {module!r} has no attribute {name!r}"
            raise AttributeError(msg)
        home, _, new = homes[name].rpartition(".")
        home = f"rlsparse_store.{home}"
        msg = f"{module}.{name} is deprecated and will be removed in 0.3: use {home}.{new}"
        warnings.warn(msg, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), new)

    return find
