"""Selection of the backend."""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import BackendError
from rlsparse_store.kernels.native import instruction_sets, load_native
from rlsparse_store.kernels.numpy.kernels import NumpyBackend

if TYPE_CHECKING:
    from rlsparse_store.kernels.interface import CpuBackend

__all__ = ["VARIABLE", "get_backend"]

VARIABLE: Final = "RLSPARSE_BACKEND"
"""Environment variable that selects a backend: ``numpy``, ``portable``, ``avx2`` or ``avx512``."""


def get_backend() -> CpuBackend:
    """Return the backend that ``RLSPARSE_BACKEND`` names, or else the fastest that runs here.

    Raises:
        BackendError: The named backend does not run here.
    """
    return _load(os.environ.get(VARIABLE, ""))


@cache
def _load(name: str) -> CpuBackend:
    native = instruction_sets()
    if not name and not native:
        msg = (
            "the native kernels are not built: rlsparse_store runs on NumPy, many times slower;"
            f" install a C++ compiler and reinstall, or set {VARIABLE}=numpy to hide this warning"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=3)
    name = name or (native[0] if native else NumpyBackend.name)
    if name == NumpyBackend.name:
        return NumpyBackend()
    if name not in native:
        available = ", ".join([*native, NumpyBackend.name])
        msg = f"{VARIABLE}={name!r} is not available here; set one of {available}"
        raise BackendError(msg)
    return load_native(name)
