"""Encoding, patching and masking tensors in memory. This module imports torch."""

from typing import TYPE_CHECKING, Any

from rlsparse_store.errors import MissingDependencyError
from rlsparse_store.installing import install_command
from rlsparse_store.torch.encoder import DeltaEncoder
from rlsparse_store.torch.mask_files import load_mask
from rlsparse_store.torch.masks import Frozen, Mask, freeze_outside
from rlsparse_store.torch.patch import patch_
from rlsparse_store.torch.switch import DeltaSwitch

if TYPE_CHECKING:
    from rlsparse_store.gpu.coder import DeviceCoder

__all__ = [
    "DeltaEncoder",
    "DeltaSwitch",
    "DeviceCoder",
    "Frozen",
    "Mask",
    "freeze_outside",
    "load_mask",
    "patch_",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the class below
    # DeviceCoder needs Triton, which only torch's CUDA builds install.
    if name == "DeviceCoder":
        try:
            from rlsparse_store.gpu.coder import DeviceCoder  # noqa: PLC0415 - needs Triton
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            msg = f"triton is not installed: {install_command('gpu')}"
            raise MissingDependencyError(msg) from error
        return DeviceCoder
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
