"""Bit strings on a device: fields of one width, least significant bit first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.backends.gpu import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["as_tensor", "grid_of", "launch", "pack", "unpack"]

AT_A_TIME: Final = 1024
"""Bytes or fields that a program packs."""


_INTERPRETING: Final = threading.Lock()
"""Triton's interpreter runs one kernel at a time."""


def launch(kernel: Any, programs: int) -> Callable[..., None]:  # noqa: ANN401 - Triton's
    """A kernel over so many programs; over none it does nothing."""

    def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - the kernel's
        if programs:
            # Triton launches on the current device, whichever the arguments are on.
            device = arguments[0].device
            with _INTERPRETING if device.type == "cpu" else torch.cuda.device(device):
                kernel[(programs,)](*arguments, **constants)

    return run


def grid_of(words: int, tile: int = kernels.TILE) -> int:
    """Programs that handle so many words."""
    return -(-words // tile)


def pack(values: torch.Tensor, width: int) -> torch.Tensor:
    """The low bits of each value, as bytes.

    Args:
        values: One-dimensional integers.
        width: Bits of each, at most 31.
    """
    nbytes = -(-values.numel() * width // 8)
    out = torch.empty(nbytes, dtype=torch.uint8, device=values.device)
    run = launch(kernels.pack_bits, grid_of(nbytes, AT_A_TIME))
    run(values, out, values.numel(), nbytes, WIDTH=width or 1, SIZE=AT_A_TIME)
    return out


def unpack(packed: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """The inverse of :func:`pack`: ``count`` fields as int32."""
    if width == 0:
        return torch.zeros(count, dtype=torch.int32, device=packed.device)
    out = torch.empty(count, dtype=torch.int32, device=packed.device)
    run = launch(kernels.unpack_bits, grid_of(count, AT_A_TIME))
    run(packed, out, count, packed.numel(), WIDTH=width, SIZE=AT_A_TIME)
    return out


def as_tensor(data: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """A copy of bytes on a device."""
    # Torch shares the memory of an array, and warns of arrays that cannot be written to.
    return torch.from_numpy(data.copy()).to(device)
