"""The hot loops on a GPU: torch tensors of words, Triton kernels. Importing this imports both."""

from rlsparse_store.backends.gpu.backend import WIDTHS, GpuBackend
from rlsparse_store.backends.gpu.leaves import hash_on_device
from rlsparse_store.backends.gpu.packing import as_tensor

__all__ = ["WIDTHS", "GpuBackend", "as_tensor", "hash_on_device"]
