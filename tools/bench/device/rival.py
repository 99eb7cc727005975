"""The simple way, a baseline for the kernels: the device only compares, and the CPU codes.

To encode, the device finds the changed words of a tensor. One bit for each word, and the changed
words, are copied to main memory, where the CPU writes them over the base's words and encodes the
result as it encodes files. To apply, the CPU decodes over the base in main memory, and sends such
bits and words to the device. Only torch runs on the device.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from device.weights import bits_of
from rlsparse_store.delta.encode import SHARD_BYTES, dtype_policy, encode_open
from rlsparse_store.delta.encoder import Encoder
from rlsparse_store.delta.kept_hashes import KeptHashes
from rlsparse_store.files.delta_reader import DeltaReader
from rlsparse_store.files.memory_checkpoint import checkpoint_in_memory
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.kernels.dispatch import get_backend
from rlsparse_store.pipeline.chunk_decoder import check_stored_bytes
from rlsparse_store.pipeline.coder import CpuCoder
from rlsparse_store.pipeline.progress import no_progress
from rlsparse_store.pipeline.threads import resolve_threads
from rlsparse_store.torch.model_tensors import check_is_base, find_targets
from rlsparse_store.torch.patch import patch_targets
from rlsparse_store.torch.state_dict import live_checkpoint, synchronize

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from device.weights import Tensors
    from rlsparse_store.torch.model_tensors import Target

    Bytes = NDArray[np.uint8]

COUNTED: Final = 1 << 13
"""Bytes of bits per entry of the running count of changed words."""


def _ones(bits: Bytes) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(bits).sum())


def _in_main_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, pinned if it comes from a GPU."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor)


class ChangedTensor:
    """A tensor on a device, read as the base's bytes with the changed words over them.

    Args:
        base: The base's tensor, in main memory.
        old: The same on the device.
        new: The tuned tensor, on the device.
    """

    dtype = DTYPES["BF16"]

    def __init__(self, base: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> None:
        self.shape = tuple(base.shape)
        self._base, self._old, self._new = bits_of(base).numpy(), old, new
        self._lock = Lock()

    def read_into(self, out: Bytes, start: int) -> None:
        """Fill ``out`` with the tuned bytes from ``start`` on, a multiple of 16 (8 words)."""
        with self._lock:
            bits, words, before = self._changes
        out[:] = self._base[start : start + out.size]
        first, last = start // 16, -(-(start + out.size) // 16)
        counted = first // COUNTED
        mask = bits[first:last]
        done = int(before[counted]) + _ones(bits[counted * COUNTED : first])
        # A copy: the exchange writes the base's words there.
        found = words[done : done + _ones(mask)].copy()
        get_backend().exchange(out.view(np.uint16), mask, found)

    @cached_property
    def _changes(self) -> tuple[Bytes, NDArray[np.uint16], NDArray[np.int64]]:
        """The bits, the changed words, and the number of these before each part of the bits."""
        old, new = (tensor.view(-1).view(torch.int16) for tensor in (self._old, self._new))
        is_changed = old != new
        places = torch.arange(8, dtype=torch.uint8, device=old.device)
        packed = (is_changed.view(torch.uint8).view(-1, 8) << places).sum(1, dtype=torch.uint8)
        bits = _in_main_memory(packed).numpy()
        words = _in_main_memory(new[is_changed]).numpy().view(np.uint16)
        parts = np.add.reduceat(np.bitwise_count(bits), range(0, bits.size, COUNTED), dtype=int)
        return bits, words, np.cumsum(parts) - parts


class Rival:
    """Encodes and applies in the simple way.

    Args:
        base: Base weights, on the device.
        work: Folder for the delta.
    """

    def __init__(self, base: Tensors, work: Path) -> None:
        self._on_device = base
        self._host = {name: _in_main_memory(tensor) for name, tensor in base.items()}
        self._model = {name: tensor.clone() for name, tensor in self._host.items()}
        self._checkpoint = live_checkpoint(self._host)
        self._hashes = KeptHashes()
        self._delta = work / "rival"
        self.stored = 0

    def forget_delta(self) -> None:
        """Remove the delta, if there is one."""
        shutil.rmtree(self._delta, ignore_errors=True)

    def encode(self, tuned: Tensors) -> None:
        """Encode weights on the device, up to the finished delta."""
        synchronize(tuned.values())
        changed = checkpoint_in_memory(
            {
                name: ChangedTensor(host, self._on_device[name], tuned[name])
                for name, host in self._host.items()
            }
        )
        policy = dtype_policy(None, keep=False)
        encoder = Encoder(self._checkpoint, changed, policy, self._hashes.tensors, force=True)
        made = encode_open(encoder, self._delta, None, SHARD_BYTES, no_progress, CpuCoder())
        self.stored = made.delta_bytes

    def reset(self) -> None:
        """Make the model in main memory the base again."""
        for name, tensor in self._host.items():
            self._model[name].copy_(tensor)

    def apply(self, model: Tensors) -> None:
        """Apply the delta to the base's weights on the device."""

        def send(target: Target, start: int, before: Bytes, after: Bytes) -> None:
            bits, words = get_backend().record(after.view(np.uint16), before.view(np.uint16))
            own = model[target.record.name].view(-1).view(torch.int16)[start // 2 :]
            _exchange(own[: before.size // 2], bits, words.view(np.int16))

        threads = resolve_threads(None)
        with DeltaReader(self._delta) as reader:
            targets = find_targets(reader, self._model)
            check_is_base(reader, targets, threads, {})
            check_stored_bytes(reader, threads)
            patch_targets(reader, targets, threads, send)
        synchronize(model.values())


def _exchange(own: torch.Tensor, bits: Bytes, words: NDArray[np.int16]) -> None:
    """Write words to a device where bits are set."""
    packed = torch.from_numpy(bits).to(own.device)
    places = torch.arange(8, dtype=torch.uint8, device=own.device)
    is_changed = (packed[:, None] >> places & 1).bool().view(-1)[: len(own)]
    own.masked_scatter_(is_changed, torch.from_numpy(words).to(own.device))
