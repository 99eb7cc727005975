"""NumPy arrays of unsigned words: every dtype there is, and no bit interpreted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlsparse_store.format.words import UNSIGNED, as_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype

__all__ = ["NumpyWords"]


class NumpyWords:
    """Elements as unsigned words of their size; those smaller than a byte as the bytes they are in.

    Example:
        >>> from rlsparse_store.format.dtypes import DTYPES
        >>> NumpyWords().array(np.arange(4, dtype=np.uint8), DTYPES["BF16"], (1, 2))
        array([[256, 770]], dtype=uint16)
    """

    def array(
        self, data: NDArray[np.uint8], dtype: Dtype, shape: tuple[int, ...]
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Words of this shape; one-dimensional bytes for dtypes of less than eight bits."""
        if dtype.bits < 8:
            return data
        return as_words(data, dtype.bits).reshape(shape)

    device: Final = None
    """NumPy arrays lie in main memory."""

    def dtype(self, dtype: Dtype) -> type[np.unsignedinteger[Any]]:
        """The unsigned type of an element's size."""
        return np.uint8 if dtype.bits < 8 else UNSIGNED[dtype.bits]
