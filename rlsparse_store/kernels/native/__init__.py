"""The native backend: the loops in C++, for several instruction sets.

The extension is optional. Where it was not built, :func:`native_paths` is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsparse_store.kernels.native.kernels import NativeBackend

__all__ = ["load_native", "native_paths"]


def native_paths() -> list[str]:
    """The instruction sets that run here, fastest first; none if the extension is not there."""
    try:
        from rlsparse_store.kernels.native import _kernels  # noqa: PLC0415 - may not be there
    except ImportError:
        return []
    return _kernels.paths()


def load_native(path: str) -> NativeBackend:
    """The backend for one of the instruction sets that :func:`native_paths` names."""
    from rlsparse_store.kernels.native.kernels import NativeBackend  # noqa: PLC0415 - may not be there

    return NativeBackend(path)
