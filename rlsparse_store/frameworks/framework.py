"""Which frameworks there are, each imported only when it is asked for."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final, Protocol

from rlsparse_store.errors import MissingDependencyError

if TYPE_CHECKING:
    from rlsparse_store.format.dtypes import Dtype

__all__ = ["FRAMEWORKS", "Framework", "get_framework"]

FRAMEWORKS: Final = ("pt", "bits")
"""Names of the frameworks: torch, and NumPy arrays of unsigned words."""


class Framework(Protocol):
    """Makes arrays that share the memory of bytes.

    Attributes:
        device: The device whose kernels make its arrays, as torch names it; ``None`` if they are
            made in main memory.
    """

    @property
    def device(self) -> Any:  # noqa: ANN401 - a torch.device
        """See the class."""

    def array(self, data: Any, dtype: Dtype, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - of its own type
        """An array that shares the memory of ``data``.

        Args:
            data: One-dimensional, contiguous bytes, little-endian and row by row: of main memory,
                or of :attr:`device`.
            dtype: Their dtype.
            shape: Dimensions, in elements.

        Raises:
            UnsupportedDtypeError: The framework has no such dtype.
        """

    def dtype(self, dtype: Dtype) -> Any:  # noqa: ANN401 - of its own type
        """What the framework calls this dtype.

        Raises:
            UnsupportedDtypeError: It has none.
        """


def get_framework(name: str, device: object = None) -> Framework:
    """The framework with this name.

    Args:
        name: One of :data:`FRAMEWORKS`.
        device: Where its arrays shall lie; torch only.

    Raises:
        ValueError: There is no such framework, or it knows no devices.
        MissingDependencyError: It is not installed.
    """
    if name == "bits":
        if device is not None and str(device) != "cpu":
            msg = 'framework="bits" gives NumPy arrays, which lie in main memory: leave out device'
            raise ValueError(msg)
        from rlsparse_store.frameworks.numpy import NumpyWords  # noqa: PLC0415 - only when asked for

        return NumpyWords()
    if name == "pt":
        if importlib.util.find_spec("torch") is None:
            msg = "torch is not installed; install rlsparse-store[torch], or use framework='bits'"
            raise MissingDependencyError(msg)
        from rlsparse_store.frameworks.torch import Torch  # noqa: PLC0415 - only when asked for

        return Torch(device)
    msg = f"framework {name!r}: choose one of {', '.join(FRAMEWORKS)}"
    raise ValueError(msg)
