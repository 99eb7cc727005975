"""Leaf hashes where the words are: XXH3 of every 16384 bytes (``specs/format.md`` section 11)."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from rlsparse_store.format.digests import LEAF_BYTES, leaf_hashes
from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.launch import launch, on_device, parts_of, programs_for, to_main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["hash_all_on_device", "hash_on_device"]

AT_A_TIME: Final = 16
"""Leaves that a program hashes."""

# The default secret and constants of XXH3, as its specification gives them.
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


def _words(place: int) -> tuple[int, ...]:
    return struct.unpack_from("<8q", _SECRET, place)


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The secret as each stripe and stage sees it, and what the lanes begin with."""
    places = [*range(0, 128, 8), 128, 121, 11]
    words = np.array([word for place in places for word in _words(place)], np.int64)
    secret = torch.from_numpy(words)
    start = torch.from_numpy(np.array(_START, np.uint64).view(np.int64))
    return secret.to(device), start.to(device)


def hash_on_device(data: torch.Tensor) -> NDArray[np.uint64]:
    """The leaf hashes of bytes on a device.

    Args:
        data: One-dimensional, contiguous ``torch.uint8``.
    """
    return hash_all_on_device([data])[0]


def hash_all_on_device(data: Sequence[torch.Tensor]) -> list[NDArray[np.uint64]]:
    """The leaf hashes of several byte strings on one device, in one pass.

    Args:
        data: One-dimensional, contiguous ``torch.uint8`` each. One is copied if its address is no
            multiple of 8.
    """
    if not data:
        return []
    device = data[0].device
    placed = [part.clone() if part.data_ptr() % 8 else part for part in data]
    nbytes = np.array([part.numel() for part in placed])
    owner, number = parts_of(nbytes // LEAF_BYTES, 1).T.astype(np.int64)
    addresses = np.array([part.data_ptr() for part in placed])[owner] + number * LEAF_BYTES
    hashes = torch.empty(addresses.size, dtype=torch.int64, device=device)
    launch(kernels.hash_leaves, programs_for(addresses.size, AT_A_TIME))(
        *(*on_device(device, addresses), *_tables(device), hashes, addresses.size),
        LEAVES=AT_A_TIME,
    )
    # The last leaf of some is short; XXH3 of short inputs takes other ways.
    short = [i for i, part in enumerate(placed) if part.numel() % LEAF_BYTES]
    rests = [placed[i][nbytes[i] // LEAF_BYTES * LEAF_BYTES :] for i in short]
    found, read = to_main(hashes, torch.cat([*rests, data[0][:0]]))
    # Copied, for they are kept: pinned memory goes back at once.
    found = found.copy()
    ends = np.cumsum(nbytes // LEAF_BYTES).tolist()
    leaves = [
        found[start:end].view(np.uint64) for start, end in zip([0, *ends], ends, strict=False)
    ]
    place = 0
    for i, rest in zip(short, rests, strict=True):
        leaves[i] = np.append(leaves[i], leaf_hashes(read[place : place + len(rest)]))
        place += len(rest)
    return leaves
