"""Live tensors as the bytes of a checkpoint, read where they are."""

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

__all__ = ["describe", "live_checkpoint", "live_tensor", "wait_for"]


def wait_for(tensors: Iterable[Any]) -> None:
    """Wait for the devices that tensors lie on: what was begun there, on any stream, is done."""
    for device in {t.device for t in tensors if isinstance(t, torch.Tensor) and t.is_cuda}:
        torch.cuda.synchronize(device)


def live_checkpoint(tensors: Mapping[str, Any]) -> Checkpoint:
    """A state dict as the checkpoint that saving it in one file would give.

    Args:
        tensors: Tensors by name, whole, on any device. One that is not contiguous is copied.

    Raises:
        UnsupportedDtypeError: A tensor is of a kind or dtype that no checkpoint has.
    """
    return checkpoint_in_memory({name: live_tensor(name, t) for name, t in tensors.items()})


def live_tensor(name: str, tensor: Any) -> LiveTensor:  # noqa: ANN401 - anything a state dict holds
    """A tensor of a state dict, to be read where it is.

    Raises:
        UnsupportedDtypeError: It is of a kind or dtype that no checkpoint has.
    """
    is_plain = type(tensor) in {torch.Tensor, torch.nn.Parameter} and not tensor.is_meta
    if not is_plain or tensor.layout is not torch.strided:
        msg = (
            f"is a {type(tensor).__name__}, not a whole tensor in memory: gather what is sharded "
            "(full_tensor()), and leave out what is no tensor"
        )
        raise UnsupportedDtypeError(msg, tensor=printable(name))
    dtype, shape = describe(name, tensor)
    return LiveTensor(tensor.detach().contiguous().view(-1).view(torch.uint8), dtype, shape)


def describe(name: str, tensor: Any) -> tuple[Dtype, tuple[int, ...]]:  # noqa: ANN401 - a tensor
    """The dtype and the dimensions that a tensor has in a checkpoint.

    Raises:
        UnsupportedDtypeError: No checkpoint has its dtype.
    """
    code = code_of(tensor.dtype)
    if code is None:
        msg = f"safetensors has no dtype for {tensor.dtype}"
        raise UnsupportedDtypeError(msg, tensor=printable(name))
    shape = tuple(tensor.shape)
    if code == "F4":
        # Two of its elements are one of torch's.
        shape = (*shape[:-1], 2 * shape[-1])
    return DTYPES[code], shape
