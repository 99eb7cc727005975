"""A state dict in memory as the checkpoint that saving it would write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rlsparse_store.errors import UnsupportedDtypeError
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.dtypes import DTYPES, Dtype
from rlsparse_store.format.names import printable
from rlsparse_store.frameworks.torch import LiveTensor, code_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rlsparse_store.files.checkpoint import Checkpoint

__all__ = ["dtype_and_shape", "live_checkpoint", "live_tensor", "synchronize"]


def synchronize(tensors: Iterable[Any]) -> None:
    """Wait until the tensors' devices have finished all work, on every stream."""
    for device in {t.device for t in tensors if isinstance(t, torch.Tensor) and t.is_cuda}:
        torch.cuda.synchronize(device)


def live_checkpoint(tensors: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that saving a state dict in one file would write.

    Args:
        tensors: Whole tensors by name, on any device. Non-contiguous tensors are copied.

    Raises:
        UnsupportedDtypeError: A checkpoint cannot hold a tensor of this type or dtype.
    """
    return checkpoint_in_memory({name: live_tensor(name, t) for name, t in tensors.items()})


def live_tensor(name: str, tensor: Any) -> LiveTensor:  # noqa: ANN401 - any value of a state dict
    """Wrap a tensor of a state dict so that its bytes can be read.

    Raises:
        UnsupportedDtypeError: A checkpoint cannot hold a tensor of this type or dtype.
    """
    is_plain = type(tensor) in {torch.Tensor, torch.nn.Parameter} and not tensor.is_meta
    if not is_plain or tensor.layout is not torch.strided:
        msg = (
            f"is a {type(tensor).__name__}, not a whole dense tensor in memory: gather sharded "
            "tensors (full_tensor()) and remove values that are not tensors"
        )
        raise UnsupportedDtypeError(msg, tensor=printable(name))
    dtype, shape = dtype_and_shape(name, tensor)
    return LiveTensor(tensor.detach().contiguous().view(-1).view(torch.uint8), dtype, shape)


def dtype_and_shape(name: str, tensor: Any) -> tuple[Dtype, tuple[int, ...]]:  # noqa: ANN401 - a tensor
    """Return the dtype and the dimensions of a tensor in a checkpoint.

    Raises:
        UnsupportedDtypeError: safetensors has no such dtype.
    """
    code = code_of(tensor.dtype)
    if code is None:
        msg = f"safetensors has no dtype for {tensor.dtype}"
        raise UnsupportedDtypeError(msg, tensor=printable(name))
    shape = tuple(tensor.shape)
    if code == "F4":
        # A torch element holds two F4 elements.
        shape = (*shape[:-1], 2 * shape[-1])
    return DTYPES[code], shape
