"""NumPy arrays: values for the dtypes that NumPy has, unsigned words for all dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.errors import UnsupportedDtypeError
from rlsparse_store.format.words import UNSIGNED, as_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype

__all__ = ["Numpy", "NumpyWords"]

_DTYPES: Final[dict[str, type[np.generic[Any]]]] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}


class Numpy:
    """Arrays of NumPy's own dtypes. NumPy has no bfloat16 and no float smaller than 16 bits.

    Example:
        >>> from rlsparse_store.format.dtypes import DTYPES
        >>> Numpy().array(np.array([0, 60], np.uint8), DTYPES["F16"], (1,))
        array([1.], dtype=float16)
    """

    device: Final = None
    """NumPy arrays are in main memory."""

    def array(
        self, data: NDArray[np.uint8], dtype: Dtype, shape: tuple[int, ...]
    ) -> NDArray[np.generic[Any]]:
        """Return an array of this dtype and shape that shares ``data``."""
        return data.view(self.dtype(dtype)).reshape(shape)

    def dtype(self, dtype: Dtype) -> type[np.generic[Any]]:
        """Return NumPy's scalar type."""
        found = _DTYPES.get(dtype.code)
        if found is None:
            words = self._words(dtype)
            msg = f"NumPy has no dtype for {dtype.code}; use framework='pt', or 'bits' for {words}"
            raise UnsupportedDtypeError(msg)
        return found

    @staticmethod
    def _words(dtype: Dtype) -> str:
        """Describe what ``framework="bits"`` returns for a dtype."""
        if dtype.bits < 8:
            return "its packed bytes"
        return f"its bits as {np.dtype(UNSIGNED[dtype.bits]).name}"


class NumpyWords:
    """Elements as unsigned words of the same size; elements smaller than a byte as packed bytes.

    Example:
        >>> from rlsparse_store.format.dtypes import DTYPES
        >>> NumpyWords().array(np.arange(4, dtype=np.uint8), DTYPES["BF16"], (1, 2))
        array([[256, 770]], dtype=uint16)
    """

    device: Final = None
    """NumPy arrays are in main memory."""

    def array(
        self, data: NDArray[np.uint8], dtype: Dtype, shape: tuple[int, ...]
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Return words of this shape; one-dimensional bytes for elements smaller than a byte."""
        if dtype.bits < 8:
            return data
        return as_words(data, dtype.bits).reshape(shape)

    def dtype(self, dtype: Dtype) -> type[np.unsignedinteger[Any]]:
        """Return the unsigned type of an element's size."""
        return np.uint8 if dtype.bits < 8 else UNSIGNED[dtype.bits]
