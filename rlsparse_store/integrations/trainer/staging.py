"""Copies of the weights in main memory, from which a thread encodes while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlsparse_store.torch.host_memory import HostSlabs
from rlsparse_store.torch.state_dict import synchronize

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Staging"]

_Layout = dict[str, tuple[torch.Size, torch.dtype]]


class Staging:
    """Main memory for one copy of the weights, kept between saves."""

    def __init__(self) -> None:
        self._layout: _Layout = {}
        self._buffers: dict[str, torch.Tensor] = {}

    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy tensors, from any device. The earlier copy is overwritten.

        Returns:
            The copies, which stay as they are until the next call.
        """
        layout = {name: (t.shape, t.dtype) for name, t in tensors.items()}
        if layout != self._layout:
            self._buffers = _allocate(tensors)
            self._layout = layout
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        synchronize(tensors.values())
        return dict(self._buffers)

    def free(self) -> None:
        """Free the memory, once no thread reads it."""
        self._layout, self._buffers = {}, {}


def _allocate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    slabs = HostSlabs(sum(t.nbytes for t in tensors.values()))
    return {name: slabs.take(t.nbytes).view(t.dtype).view(t.shape) for name, t in tensors.items()}
