"""Leaf hashes on a device: XXH3 of every 16384 bytes (``specs/format.md`` section 11)."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from rlsparse_store.format.digests import LEAF_BYTES
from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.launch import launch, num_programs, parts_of, to_device, to_host
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["hash_all_on_device", "hash_on_device"]

LEAVES_PER_PROGRAM: Final = 16
"""Leaves that one program hashes."""

# Default secret and initial accumulators of the XXH3 specification.
_SECRET: Final = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_START: Final = (
    0xC2B2AE3D,
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x85EBCA77,
    0x27D4EB2F165667C5,
    0x9E3779B1,
)


def _words(offset: int) -> tuple[int, ...]:
    return struct.unpack_from("<8q", _SECRET, offset)


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the secret's words for each stripe and stage, and the initial accumulators."""
    offsets = [*range(0, 128, 8), 128, 121, 11]
    words = np.array([word for offset in offsets for word in _words(offset)], np.int64)
    secret = torch.from_numpy(words)
    start = torch.from_numpy(np.array(_START, np.uint64).view(np.int64))
    return secret.to(device), start.to(device)


def hash_on_device(data: torch.Tensor) -> NDArray[np.uint64]:
    """Return the leaf hashes of bytes on a device.

    Args:
        data: One-dimensional, contiguous ``torch.uint8``.
    """
    return hash_all_on_device([data])[0]


def hash_all_on_device(data: Sequence[torch.Tensor]) -> list[NDArray[np.uint64]]:
    """Return the leaf hashes of several byte strings on one device, in one pass.

    Args:
        data: One-dimensional, contiguous ``torch.uint8``. Strings at addresses that are not a
            multiple of 8 are copied.
    """
    if not data:
        return []
    device = data[0].device
    parts = [part.clone() if part.data_ptr() % 8 else part for part in data]
    nbytes = np.array([part.numel() for part in parts])
    owner, number = parts_of(nbytes // LEAF_BYTES, 1).T.astype(np.int64)
    addresses = np.array([part.data_ptr() for part in parts])[owner] + number * LEAF_BYTES
    hashes = torch.empty(addresses.size, dtype=torch.int64, device=device)
    launch(kernels.hash_leaves, num_programs(addresses.size, LEAVES_PER_PROGRAM))(
        *(*to_device(device, addresses), *_tables(device), hashes, addresses.size),
        LEAVES=LEAVES_PER_PROGRAM,
    )
    # The CPU hashes short last leaves: XXH3 has other algorithms for short inputs.
    short = [i for i, part in enumerate(parts) if part.numel() % LEAF_BYTES]
    rests = [parts[i][nbytes[i] // LEAF_BYTES * LEAF_BYTES :] for i in short]
    found, read = to_host(hashes, torch.cat([*rests, data[0][:0]]))
    # Copied because callers keep the hashes: pinned memory is released early.
    found = found.copy()
    ends = np.cumsum(nbytes // LEAF_BYTES).tolist()
    leaves = [
        found[start:end].view(np.uint64) for start, end in zip([0, *ends], ends, strict=False)
    ]
    offset = 0
    for i, rest in zip(short, rests, strict=True):
        leaves[i] = np.append(
            leaves[i], get_backend().leaf_hashes(read[offset : offset + len(rest)])
        )
        offset += len(rest)
    return leaves
