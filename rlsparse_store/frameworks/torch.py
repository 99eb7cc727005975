"""Torch tensors over the bytes of a checkpoint. This module imports torch."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.errors import UnsupportedDtypeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype

__all__ = ["VARIABLE", "LiveTensor", "Torch", "bytes_of", "code_of", "runs_kernels"]

VARIABLE: Final = "RLSPARSE_GPU"
"""Environment variable that lets the GPU kernels run, if it is ``1``: they never ran on a GPU."""

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
        device: A torch device or its name; main memory by default.

    Example:
        >>> import numpy as np
        >>> from rlsparse_store.format.dtypes import DTYPES
        >>> Torch().array(np.array([128, 63], np.uint8), DTYPES["BF16"], (1,))
        tensor([1.], dtype=torch.bfloat16)
    """

    def __init__(self, device: Any = None) -> None:  # noqa: ANN401 - anything that torch.device accepts
        self._device = torch.device("cpu" if device is None else device)

    def array(
        self,
        data: NDArray[np.uint8] | torch.Tensor,
        dtype: Dtype,
        shape: tuple[int, ...],
    ) -> torch.Tensor:
        """Return a tensor over these bytes, or a copy of them on another device.

        As in safetensors, a torch element holds two F4 elements.
        """
        # device="cpu": torch's default device may be another one.
        flat = torch.empty(0, dtype=self.dtype(dtype), device="cpu")
        if len(data):  # view() rejects the strides of an empty array
            flat = data if isinstance(data, torch.Tensor) else torch.from_numpy(data)
            flat = flat.view(self.dtype(dtype))
        if dtype.code == "F4":
            if not shape or shape[-1] % 2:
                msg = "rows have an odd number of 4-bit elements; use framework='bits'"
                raise UnsupportedDtypeError(msg)
            shape = (*shape[:-1], shape[-1] // 2)
        return flat.reshape(shape).to(self._device)

    @property
    def device(self) -> torch.device | None:
        """The device, if the GPU kernels run on it."""
        return self._device if runs_kernels(self._device) else None

    def dtype(self, dtype: Dtype) -> torch.dtype:
        """Return torch's dtype."""
        found = _DTYPES.get(dtype.code)
        if found is None:
            msg = f"torch has no dtype for {dtype.code}; use framework='bits'"
            raise UnsupportedDtypeError(msg)
        return found


class LiveTensor:
    """A whole tensor on the CPU or another device, read as checkpoint bytes.

    Args:
        data: Row-major bytes: one-dimensional ``torch.uint8``.
        dtype: Dtype of the elements.
        shape: Dimensions, in elements.

    Attributes:
        data: The bytes, shared with the tensor.
        dtype: Dtype of the elements.
        shape: Dimensions, in elements.
    """

    def __init__(self, data: torch.Tensor, dtype: Dtype, shape: tuple[int, ...]) -> None:
        self.data = data
        self.dtype = dtype
        self.shape = shape

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        """Fill ``out`` with the tensor's bytes, starting at byte ``start``."""
        torch.from_numpy(out).copy_(self.data[start : start + out.size])


def runs_kernels(device: torch.device) -> bool:
    """Return whether the GPU kernels run on a device: on CUDA, with Triton, if asked for.

    Example:
        >>> runs_kernels(torch.device("cpu"))
        False
    """
    if device.type != "cuda" or os.environ.get(VARIABLE) != "1":
        return False
    return importlib.util.find_spec("triton") is not None


def code_of(dtype: torch.dtype) -> str | None:
    """Return the safetensors code of a torch dtype, or ``None``.

    Example:
        >>> code_of(torch.bfloat16)
        'BF16'
    """
    return _CODES.get(dtype)


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a contiguous tensor in main memory, without a copy.

    Example:
        >>> bytes_of(torch.ones(1, dtype=torch.bfloat16))
        array([128,  63], dtype=uint8)
    """
    data: NDArray[np.uint8] = tensor.detach().view(-1).view(torch.uint8).numpy()
    return data
