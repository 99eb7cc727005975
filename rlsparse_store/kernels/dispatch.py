"""Which backend to run on."""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import BackendError
from rlsparse_store.kernels.native import load_native, native_paths
from rlsparse_store.kernels.numpy.kernels import NumpyBackend

if TYPE_CHECKING:
    from rlsparse_store.kernels.interface import CpuBackend

__all__ = ["VARIABLE", "get_backend"]

VARIABLE: Final = "RLSPARSE_BACKEND"
"""Environment variable that forces a backend: ``numpy``, ``portable``, ``avx2`` or ``avx512``."""


def get_backend() -> CpuBackend:
    """The fastest backend that runs here, or the one that ``RLSPARSE_BACKEND`` names.

    Raises:
        BackendError: The one named does not run here.
    """
    return _choose(os.environ.get(VARIABLE, ""))


@cache
def _choose(wanted: str) -> CpuBackend:
    paths = native_paths()
    if not wanted and not paths:
        msg = (
            "the native kernels were not built, so rlsparse_store runs on NumPy, many times slower;"
            f" install a C++ compiler and install it again, or set {VARIABLE}=numpy to accept it"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=3)
    wanted = wanted or (paths[0] if paths else NumpyBackend.name)
    if wanted == NumpyBackend.name:
        return NumpyBackend()
    if wanted not in paths:
        known = ", ".join([*paths, NumpyBackend.name])
        msg = f"{VARIABLE} is {wanted!r}, which does not run here; {known} would"
        raise BackendError(msg)
    return load_native(wanted)
