"""Where transformers is told to put a model."""

from __future__ import annotations

import os
from typing import Any, Final

import torch

__all__ = ["only_device"]

_NO_DEVICES: Final = {None, "auto", "balanced", "balanced_low_0", "sequential", "disk"}


def only_device(device_map: Any) -> torch.device | None:  # noqa: ANN401 - as from_pretrained takes it
    """The CUDA device that all of a model goes to, if it is one.

    Args:
        device_map: As ``from_pretrained`` takes it: a device, or devices by parts of the model.

    Returns:
        The device, or ``None`` where there are several, none of CUDA, or transformers is to choose.

    Example:
        >>> only_device({"model": "cuda:1", "lm_head": "cuda:1"})
        device(type='cuda', index=1)
        >>> only_device("auto")
    """
    places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(places) != 1 or places & _NO_DEVICES:
        return None
    (place,) = places
    if place == "cuda":
        # As transformers has it: each process of a node has its own.
        place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(place)
    except RuntimeError:
        # What is wrong with it, transformers says better.
        return None
    return device if device.type == "cuda" else None
