"""The native backend: C++ loops for several instruction sets.

The extension is optional. Without it, :func:`instruction_sets` returns an empty list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsparse_store.kernels.native.kernels import NativeBackend

__all__ = ["instruction_sets", "load_native"]


def instruction_sets() -> list[str]:
    """Return the instruction sets that run here, fastest first; none without the extension."""
    try:
        from rlsparse_store.kernels.native import _kernels  # noqa: PLC0415 - optional
    except ImportError:
        return []
    return _kernels.paths()


def load_native(instruction_set: str) -> NativeBackend:
    """Return the backend for one of :func:`instruction_sets`."""
    from rlsparse_store.kernels.native.kernels import NativeBackend  # noqa: PLC0415 - optional

    return NativeBackend(instruction_set)
