"""The hot loops on a GPU: torch tensors of words, Triton kernels. Importing this imports both."""

from rlsparse_store.backends.gpu.backend import WIDTHS, GpuBackend
from rlsparse_store.backends.gpu.launching import main_memory
from rlsparse_store.backends.gpu.leaves import hash_all_on_device, hash_on_device
from rlsparse_store.backends.gpu.tables import ALIGNMENT

__all__ = [
    "ALIGNMENT",
    "WIDTHS",
    "GpuBackend",
    "hash_all_on_device",
    "hash_on_device",
    "main_memory",
]
