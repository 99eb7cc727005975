"""The ``device_map`` argument of ``from_pretrained``."""

from __future__ import annotations

import os
from typing import Any, Final

import torch

__all__ = ["single_device"]

_NOT_DEVICES: Final = {None, "auto", "balanced", "balanced_low_0", "sequential", "disk"}


def single_device(device_map: Any) -> torch.device | None:  # noqa: ANN401 - as from_pretrained takes it
    """Return the CUDA device that holds the whole model, if there is one.

    Args:
        device_map: The argument of ``from_pretrained``: a device, or devices by module name.

    Returns:
        The device; ``None`` for several devices, for other kinds of devices, and if transformers
        chooses the devices.

    Example:
        >>> single_device({"model": "cuda:1", "lm_head": "cuda:1"})
        device(type='cuda', index=1)
        >>> single_device("auto")
    """
    devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(devices) != 1 or devices & _NOT_DEVICES:
        return None
    (name,) = devices
    if name == "cuda":
        # As in transformers: each process of a node has its own device.
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError:
        # transformers raises the error.
        return None
    return device if device.type == "cuda" else None
