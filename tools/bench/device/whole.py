"""Encoding and applying, whole: from weights on the device to a delta, and back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from rlsparse_store.torch import DeltaEncoder, DeviceCoder, patch_

if TYPE_CHECKING:
    import torch

    from device.weights import Tensors


def write(tensors: Tensors, folder: Path) -> Path:
    """Save a checkpoint."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def encoder_on(device: torch.device, base: Path) -> DeltaEncoder:
    """An encoder that runs the kernels, also where they are interpreted."""
    encoder = DeltaEncoder(base, device=device, keep="device")
    if device.type == "cpu":
        encoder._coder = DeviceCoder(device)  # noqa: SLF001 - it chose the CPU's own
    return encoder


def folder_for(nbytes: int) -> Path:
    """Where deltas of so many bytes of weights lie: in memory, if there is room for half of them.

    Containers often have 64 MB there.
    """
    memory = Path("/dev/shm")  # noqa: S108 - only to be in memory
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > nbytes // 2
    return memory if has_room else Path(tempfile.gettempdir())


def filesystem(folder: Path) -> str:
    """The kind of file system that a folder is on: ``tmpfs`` is memory."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    over = [(Path(point), kind) for point, kind in mounts if folder.is_relative_to(point)]
    # Of those as near, the last one hides the others.
    return max(reversed(over), key=lambda mount: len(mount[0].parts))[1]


class Whole:
    """A model whose deltas are made and applied again and again.

    Args:
        device: Where its weights are.
        base: Its base weights.
        work: Where the delta lies.
    """

    def __init__(self, device: torch.device, base: Tensors, work: Path) -> None:
        self._base = base
        self._delta = work / "delta"
        self.model = {name: tensor.clone() for name, tensor in base.items()}
        with tempfile.TemporaryDirectory() as folder:
            place = write(base, Path(folder, "base"))
            self._encoder = encoder_on(device, place)
            self._cpu_encoder = DeltaEncoder(place, keep="host")
        self.stored = 0

    def forget_delta(self) -> None:
        """Remove the delta, if there is one."""
        shutil.rmtree(self._delta, ignore_errors=True)

    def encode(self, tuned: Tensors) -> None:
        """From weights on the device to a finished delta."""
        self.stored = self._encoder.encode(tuned, self._delta).delta_bytes

    def encode_on_cpu(self, tuned: Tensors) -> None:
        """The same where nothing but copies runs on the device."""
        self.stored = self._cpu_encoder.encode(tuned, self._delta).delta_bytes

    def reset(self) -> None:
        """Make the model the base again."""
        for name, tensor in self._base.items():
            self.model[name].copy_(tensor)

    def apply(self) -> None:
        """From the delta to weights on the device, in place of the base's."""
        patch_(self.model, self._delta)
