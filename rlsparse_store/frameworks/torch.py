"""Torch tensors over the bytes of a checkpoint. Importing this module imports torch."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.errors import UnsupportedDtypeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype

__all__ = ["LiveTensor", "ReadableTensor", "Torch", "bytes_of", "code_of", "has_kernels"]

_DTYPES: Final = {
    "BOOL": torch.bool,
    "F4": torch.float4_e2m1fn_x2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}


class Torch:
    """Tensors on a device.

    Args:
        device: The device, as torch names it; main memory by default.

    Example:
        >>> import numpy as np
        >>> from rlsparse_store.format.dtypes import DTYPES
        >>> Torch().array(np.array([128, 63], np.uint8), DTYPES["BF16"], (1,))
        tensor([1.], dtype=torch.bfloat16)
    """

    def __init__(self, device: Any = None) -> None:  # noqa: ANN401 - whatever torch takes
        self._device = torch.device("cpu" if device is None else device)

    def array(
        self,
        data: NDArray[np.uint8] | torch.Tensor,
        dtype: Dtype,
        shape: tuple[int, ...],
    ) -> torch.Tensor:
        """A tensor over these bytes, or a copy of them on another device.

        Two elements of F4 are one of torch's, as safetensors has it.
        """
        # Wherever torch makes tensors by default.
        flat = torch.empty(0, dtype=self.dtype(dtype), device="cpu")
        if len(data):  # an empty array's strides are not what torch's view requires
            flat = data if isinstance(data, torch.Tensor) else torch.from_numpy(data)
            flat = flat.view(self.dtype(dtype))
        if dtype.code == "F4":
            if not shape or shape[-1] % 2:
                msg = "an odd number of 4-bit elements in a row; use framework='bits'"
                raise UnsupportedDtypeError(msg)
            shape = (*shape[:-1], shape[-1] // 2)
        return flat.reshape(shape).to(self._device)

    @property
    def device(self) -> torch.device | None:
        """The device, if kernels run on it."""
        return self._device if has_kernels(self._device) else None

    def dtype(self, dtype: Dtype) -> torch.dtype:
        """The dtype of torch."""
        found = _DTYPES.get(dtype.code)
        if found is None:
            msg = f"torch has no dtype for {dtype.code}; use framework='bits'"
            raise UnsupportedDtypeError(msg)
        return found


class ReadableTensor(ABC):
    """A tensor in memory, read as the bytes that a checkpoint holds of it.

    Attributes:
        dtype: Its dtype.
        shape: Its dimensions, in elements.
    """

    dtype: Dtype
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def data(self) -> torch.Tensor:
        """Its bytes, row by row: one-dimensional ``torch.uint8``, on its device."""

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        """Fill ``out`` with its bytes from byte ``start`` on."""
        torch.from_numpy(out).copy_(self.data[start : start + out.size])


class LiveTensor(ReadableTensor):
    """A whole tensor of the CPU or a device.

    Args:
        data: Its bytes, row by row: one-dimensional ``torch.uint8``.
        dtype: Its dtype.
        shape: Its dimensions, in elements.
    """

    def __init__(self, data: torch.Tensor, dtype: Dtype, shape: tuple[int, ...]) -> None:
        self._data = data
        self.dtype = dtype
        self.shape = shape

    @property
    def data(self) -> torch.Tensor:
        """Its bytes, where the tensor is."""
        return self._data


def has_kernels(device: torch.device) -> bool:
    """Whether kernels run on a device."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def code_of(dtype: torch.dtype) -> str | None:
    """The safetensors code of a dtype of torch, if there is one.

    Example:
        >>> code_of(torch.bfloat16)
        'BF16'
    """
    return _CODES.get(dtype)


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a contiguous tensor in main memory, shared with it.

    Example:
        >>> bytes_of(torch.ones(1, dtype=torch.bfloat16))
        array([128,  63], dtype=uint8)
    """
    data: NDArray[np.uint8] = tensor.detach().view(-1).view(torch.uint8).numpy()
    return data
