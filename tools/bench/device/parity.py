"""Whether a device gives the bytes of the CPU: deltas, and weights that they were applied to."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from device.weights import bits_of
from device.whole import encoder_on, write
from rlsparse_store.delta import encode_delta
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.torch import DeviceCoder, patch_

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from device.weights import Tensors

    Words = NDArray[np.unsignedinteger[Any]]
    Model = dict[str, tuple[torch.Tensor, torch.Tensor]]

KINDS: Final = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "I32": torch.int32,
}
"""Dtypes whose words the kernels take, of every width and order."""

DELTA: Final = Path("rlsparse", "delta.safetensors")
ROW: Final = 60
"""Words of a row: of no whole number of rows is a chunk."""

APART: Final = 48
"""Changes of which the last one lies far behind the others: with no more, there is one context, and
with no fewer, its gap is so much longer than the average that it escapes."""


def differences(device: torch.device, codes: Sequence[str], words: int) -> list[str]:
    """What differs from what the CPU gives.

    Kernels that skip rows without changes are others than those that do not, and one tensor with
    such rows is enough for all that are coded together: so there are models with and without.

    Args:
        device: The device.
        codes: Dtypes.
        words: Words of a dense tensor; of more than four blocks, it becomes several chunks.
    """
    found = []
    for name, model in models(codes, words).items():
        base = {key: before for key, (before, _) in model.items()}
        tuned = {key: after for key, (_, after) in model.items()}
        with TemporaryDirectory() as work:
            found += [f"{name}: {one}" for one in _differences(device, base, tuned, Path(work))]
    return found


def models(codes: Sequence[str], words: int) -> dict[str, Model]:
    """Base and tuned tensors without rows, and with rows."""
    random = np.random.default_rng(0)
    flat = {
        f"{code}.{name}": _as_tensors(pair, KINDS[code], 1)
        for code in codes
        for name, pair in _flat(random, code, words)
    }
    rows = {
        code: _as_tensors(_untouched_rows(random, _width(code), words), KINDS[code], ROW)
        for code in codes
    }
    return {"flat": flat, "rows": rows}


def _differences(device: torch.device, base: Tensors, tuned: Tensors, work: Path) -> Iterator[str]:
    """Encode from files and from weights on the device, and apply there."""
    files = write(base, work / "base"), write(tuned, work / "tuned")
    encode_delta(*files, work / "cpu")
    encode_delta(*files, work / "files", coder=DeviceCoder(device))
    with encoder_on(device, files[0]) as encoder:
        encoder.encode(_placed(tuned, device), work / "weights")
    expected = (work / "cpu" / DELTA).read_bytes()
    for way in ("files", "weights"):
        if (work / way / DELTA).read_bytes() != expected:
            yield f"the delta made of {way}"
    model = _placed(base, device)
    patch_(model, work / "cpu")
    for name, tensor in tuned.items():
        if not torch.equal(bits_of(model[name].cpu()), bits_of(tensor)):
            yield f"{name}, to which it was applied"


def _placed(tensors: Tensors, device: torch.device) -> Tensors:
    """Tensors on a device, two of three at odd addresses, as views may be."""

    def place(tensor: torch.Tensor, skip: int) -> torch.Tensor:
        room = torch.empty(skip + tensor.numel(), dtype=tensor.dtype, device=device)
        return room[skip:].view(tensor.shape).copy_(tensor)

    return {
        name: place(tensor, skip)
        for (name, tensor), skip in zip(tensors.items(), cycle((0, 1, 1)), strict=False)
    }


def _as_tensors(
    pair: tuple[Words, Words], kind: torch.dtype, row: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Words as tensors with rows of so many words, or with one dimension."""
    shape = (-1,) if row == 1 else (-1, row)
    before, after = (
        torch.from_numpy(words.view(f"i{words.itemsize}")).view(kind).view(shape) for words in pair
    )
    return before, after


def _flat(
    random: np.random.Generator, code: str, words: int
) -> Iterator[tuple[str, tuple[Words, Words]]]:
    """Tensors without rows: of many changes and special words, and of few changes, far apart."""
    width, mantissa = _width(code), DTYPES[code].mantissa_bits
    base = _gaussian(random, width, words)
    # Each exponent has its share of changes, so that floats are coded in many contexts.
    chances = np.full(256, 0.3) if mantissa is None else random.random(256) ** 2 / 2
    hit = random.random(words) < chances[(base >> max(0, width - 9)) & 0xFF]
    special = _special(width, mantissa or width // 2)
    before = np.concatenate([np.repeat(special, special.size), base])
    after = np.concatenate([np.tile(special, special.size), _moved(random, base, hit)])
    yield "dense", (before, after)
    base = _gaussian(random, width, words // 8)
    hit = np.zeros(base.size, np.bool_)
    hit[: APART - 1] = hit[-1] = True
    yield "apart", (base, _moved(random, base, hit))


def _untouched_rows(random: np.random.Generator, width: int, words: int) -> tuple[Words, Words]:
    """One row in ten has changes, so many that flags of rows pay."""
    base = _gaussian(random, width, words // ROW * ROW)
    touched = np.arange(base.size) // ROW % 10 == 3
    return base, _moved(random, base, touched & (random.random(base.size) < 0.5))


def _width(code: str) -> int:
    return DTYPES[code].coding.width


def _gaussian(random: np.random.Generator, width: int, words: int) -> Words:
    """The upper bits of Gaussian float32."""
    wide = random.standard_normal(words, np.float32).view(np.uint32)
    narrow: Words = (wide >> np.uint32(32 - width)).astype(f"u{width // 8}")
    return narrow


def _moved(random: np.random.Generator, base: Words, hit: NDArray[np.bool_]) -> Words:
    """Most words that are hit move by little, some by anything."""
    near = random.integers(1, 8, base.size, np.uint8).astype(base.dtype)
    far = random.integers(0, 1 << 8 * base.itemsize, base.size, np.uint32).astype(base.dtype)
    moved = np.where(random.random(base.size) < 0.9, base + near, far)
    return np.where(hit, moved, base)


def _special(width: int, mantissa: int) -> Words:
    """Zeros, ones, infinities, NaNs, and both ends of the subnormal and of the normal, as floats.

    Words of integers have the same bits.
    """
    sign, ends = 1 << (width - 1), 1 << mantissa
    infinity = sign - ends
    one = infinity // 2 // ends * ends
    nans = infinity + 1, infinity + ends // 2, infinity + ends // 2 + 1, sign - 1
    above = (0, 1, ends - 1, ends, one, infinity - 1, infinity, *nans)
    return np.array([*above, *(sign + word for word in above)], f"u{width // 8}")
