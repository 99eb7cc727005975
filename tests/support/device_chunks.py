"""Test chunks for the kernels of a GPU, and their device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from interpreter import hasten

from rlsparse_store.gpu.diff import diff
from rlsparse_store.kernels.interface import ChangeList
from rlsparse_store.kernels.numpy import NumpyBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.gpu.chunk_words import ChunkWords
    from rlsparse_store.kernels.interface import Changes

DEVICE = os.environ.get("RLSPARSE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    hasten()
CPU = NumpyBackend()
TYPES: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32}
SPECIAL = (0, 1, 0x7F, 0x80, 0xFF, 0x7F80, 0x8000, 0xFF80, 0xFFFF, 0x80000000, 0xFFFFFFFF)


def on_device(words: NDArray[Any]) -> torch.Tensor:
    signed = words.view(f"i{words.itemsize}")
    return torch.from_numpy(signed.copy()).to(DEVICE)


def chunk(seed: int, words: int, coding: WordCoding, density: float) -> tuple[Any, Any]:
    """Return base words around zero and special ones, and tuned words with near and far steps."""
    rng = np.random.default_rng(seed)
    kind = TYPES[coding.width]
    spread = rng.normal(0, 1, words).astype(np.float32).view(np.uint32)
    base = (spread >> np.uint32(32 - coding.width)).astype(kind)
    special = np.array([value & ((1 << coding.width) - 1) for value in SPECIAL], kind)
    lucky = rng.random(words) < 0.02
    base[lucky] = rng.choice(special, int(lucky.sum()))
    hit = rng.random(words) < density
    near = rng.integers(0, 8, words).astype(kind)
    far = rng.integers(0, 1 << coding.width, words, dtype=np.uint64).astype(kind)
    moved = np.where(rng.random(words) < 0.9, base + near, far).astype(kind)
    return base, np.where(hit, moved, base).astype(kind)


def changes_on_device(base: torch.Tensor, tuned: torch.Tensor, coding: WordCoding) -> Changes:
    """Compare a chunk of at most 2**20 words."""
    (changes,) = diff([(base, tuned)], coding).blocks(0, 1 << 20)
    return changes


def compared(
    coding: WordCoding, *chunks: tuple[NDArray[Any], NDArray[Any], tuple[int, int] | None]
) -> list[ChunkWords]:
    """Compare base and tuned words of chunks, given with their rows, on the device."""
    found = diff([(on_device(base), on_device(tuned)) for base, tuned, _ in chunks], coding)
    return [
        found.chunk(i, slice(0, base.size), row, CPU.compare(base, tuned, coding, ChangeList()))
        for i, (base, tuned, row) in enumerate(chunks)
    ]


def contexts(top: int, number: int) -> NDArray[np.uint64]:
    """Return at most ``number`` context bounds, the last one ``top``."""
    inner = np.linspace(0, top, number + 1)[1:-1].astype(np.uint64)
    return np.unique(np.append(inner, np.uint64(top)))
