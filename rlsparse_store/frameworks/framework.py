"""The frameworks whose arrays a delta is read into. Each is imported on first use."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.installing import install_command

if TYPE_CHECKING:
    from rlsparse_store.format.dtypes import Dtype

__all__ = ["FRAMEWORKS", "Framework", "FrameworkName", "get_framework"]

FrameworkName = Literal["pt", "np", "bits"]
"""``"pt"``: torch tensors. ``"np"``: NumPy arrays, for the dtypes that NumPy has. ``"bits"``: NumPy
arrays of unsigned words, for all dtypes."""

FRAMEWORKS: Final[tuple[str, ...]] = get_args(FrameworkName)


class Framework(Protocol):
    """Creates arrays that share the memory of bytes.

    Attributes:
        device: The device whose kernels write the arrays' bytes, as torch names it; ``None`` if
            they are decoded in main memory.
    """

    @property
    def device(self) -> Any:  # noqa: ANN401 - a torch.device
        """See the class."""

    def array(self, data: Any, dtype: Dtype, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - of its own type
        """Return an array that shares the memory of ``data``.

        Args:
            data: One-dimensional contiguous bytes, little-endian, row-major, in main memory or on
                :attr:`device`.
            dtype: Dtype of the elements.
            shape: Dimensions, in elements.

        Raises:
            UnsupportedDtypeError: The framework has no such dtype.
        """

    def dtype(self, dtype: Dtype) -> Any:  # noqa: ANN401 - of its own type
        """Return the framework's dtype.

        Raises:
            UnsupportedDtypeError: The framework has no such dtype.
        """


def get_framework(name: str, device: object = None) -> Framework:
    """Return the framework with this name.

    Args:
        name: One of :data:`FRAMEWORKS`.
        device: The device of the arrays; only for ``"pt"``.

    Raises:
        ValueError: The name is unknown, or a device is given for NumPy arrays.
        MissingDependencyError: The framework is not installed.
    """
    if name not in FRAMEWORKS:
        msg = f"framework {name!r}: choose one of {', '.join(FRAMEWORKS)}"
        raise ValueError(msg)
    if name == "pt":
        if importlib.util.find_spec("torch") is None:
            msg = f"torch is not installed: {install_command('torch')}, or use framework='bits'"
            raise MissingDependencyError(msg)
        from rlsparse_store.frameworks.torch import Torch  # noqa: PLC0415 - optional dependency

        return Torch(device)
    if device is not None and str(device) != "cpu":
        msg = f'framework="{name}" returns NumPy arrays in main memory: leave out device'
        raise ValueError(msg)
    from rlsparse_store.frameworks.numpy import Numpy, NumpyWords  # noqa: PLC0415 - see the module

    return Numpy() if name == "np" else NumpyWords()
