"""Inputs of the measurement: real pairs, generated pairs, and a small pair of special values."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peers.base import Tensor, Tensors

MAKE_PAIR: Final = Path(__file__).resolve().parents[1] / "make_pair.py"
WEIGHTS: Final = "model.safetensors"
ROW: Final = 4096
"""Words per row of a generated tensor: the width of a typical 8B model."""


@dataclass(frozen=True, slots=True)
class Input:
    """A pair of checkpoints on disk.

    Attributes:
        name: Name in the tables.
        base: Weights file of the base.
        tuned: Weights file of the tuned model.
    """

    name: str
    base: Path
    tuned: Path


def nbytes_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def real_cases(folder: Path) -> list[Input]:
    """The pairs of ``base`` and every other folder with weights."""
    base = folder / "base" / WEIGHTS
    tuned = sorted(path for path in folder.glob(f"*/{WEIGHTS}") if path != base)
    return [Input(path.parent.name, base, path) for path in tuned]


def generated(folder: Path, words: int, density: float) -> Input:
    """A pair of one Gaussian tensor, generated if it does not exist."""
    name = f"generated, {100 * density:g} %"
    pair = make_pair(
        folder / f"{words}-words-{density:g}", ["--single", str(words)], density, shards=1
    )
    return Input(name, pair / "base" / WEIGHTS, pair / "tuned" / WEIGHTS)


def make_pair(folder: Path, size: Sequence[str], density: float, shards: int) -> Path:
    """Generate a pair with ``tools/make_pair.py`` if the folder does not exist."""
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    options = [*size, "--density", f"{density:g}", "--shards", str(shards)]
    command = [sys.executable, str(MAKE_PAIR), str(unfinished), *options]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - this project's own tool
    return unfinished.rename(folder)


def load(pair: Input, limit_words: int | None) -> tuple[Tensors, Tensors]:
    """Read the tensors of both sides in order of names, up to a number of words."""
    base, tuned = read_tensors(pair.base), read_tensors(pair.tuned)
    sides = [base[name] for name in sorted(base)], [tuned[name] for name in sorted(base)]
    before, after = (_in_memory(side, limit_words) for side in sides)
    return before, after


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file, which must all be bfloat16."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    if any(entry["dtype"] != "BF16" for entry in header.values()):
        msg = f"{path}: all tensors must be BF16"
        raise ValueError(msg)
    content = np.memmap(path, np.uint8, "r", offset=8 + size)
    return {
        name: content[slice(*entry["data_offsets"])].view(np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
    }


def _in_memory(tensors: Tensors, limit_words: int | None) -> Tensors:
    """Copy leading tensors, the last one cut to whole rows. A single vector becomes a matrix."""
    if len(tensors) == 1 and tensors[0].ndim == 1 and tensors[0].size % ROW == 0:
        tensors = [tensors[0].reshape(-1, ROW)]
    remaining = limit_words or sum(words.size for words in tensors)
    copies: list[Tensor] = []
    for words in tensors:
        row = math.prod(words.shape[1:])
        part = np.array(words[: remaining // row])
        if part.size:
            copies.append(part)
        remaining -= part.size
    return copies


def special_values() -> tuple[Tensors, Tensors]:
    """A small pair with every change between zeros, NaNs, infinities and subnormals."""
    special = np.array(
        [
            *(0x0000, 0x8000),  # zeros
            *(0x7F80, 0xFF80),  # infinities
            *(0x7FC0, 0x7FC1, 0x7F81, 0xFFC0, 0xFFFF),  # NaNs, quiet and signalling
            *(0x0001, 0x8001, 0x007F),  # subnormal
            *(0x0080, 0x7F7F, 0x3F80, 0xBF80),  # smallest and largest normal; ones
        ],
        np.uint16,
    )
    random = np.random.default_rng(0)
    normal = random.standard_normal((64, 1024), np.float32).view(np.uint32) >> 16
    base = normal.astype(np.uint16)
    base.flat[: special.size**2] = np.repeat(special, special.size)
    tuned = base + (random.random(base.shape) < 0.02).astype(np.uint16)
    tuned.flat[: special.size**2] = np.tile(special, special.size)
    return [base], [tuned]
