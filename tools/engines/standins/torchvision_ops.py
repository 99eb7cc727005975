"""Declares the operators that torchvision registers others for.

Its own are compiled for a build of torch with CUDA. Nothing calls these.
"""

from __future__ import annotations

from typing import Any, Final

import torch

LIBRARY: Final[Any] = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]

for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
