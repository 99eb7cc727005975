"""The checkpoints that vectors are made of. Every byte is a function of a name, by SHAKE-128."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from rlsparse_store.format.dtypes import DTYPES, WordCoding
from rlsparse_store.format.order import add_steps
from rlsparse_store.format.words import Words, as_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Json: TypeAlias = dict[str, Any]
Files: TypeAlias = dict[str, bytes]

MODEL: Final = "model.safetensors"
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
LISTING: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """One tensor: dtype code, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> Words:
        """Its words in its dtype's own coding."""
        return as_words(np.frombuffer(self.data, np.uint8), DTYPES[self.dtype].coding.width)


Tensors: TypeAlias = dict[str, Tensor]


def safetensors(
    tensors: Tensors,
    *,
    metadata: dict[str, str] | None = None,
    names: Sequence[str] | None = None,
    padding: int = 0,
) -> bytes:
    """A safetensors file.

    Args:
        tensors: Its tensors.
        metadata: Its ``__metadata__``.
        names: Their order; ascending if not given.
        padding: Spaces beyond those that alignment needs.
    """
    fields: Json = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name in names or sorted(tensors):
        t = tensors[name]
        place = [len(data), len(data) + len(t.data)]
        fields[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": place}
        data += t.data
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8 + padding)
    return len(text).to_bytes(8, "little") + text + data


def noise(name: str, nbytes: int) -> NDArray[np.uint8]:
    """Bytes that look random and are a function of ``name``."""
    return np.frombuffer(hashlib.shake_128(name.encode()).digest(nbytes), np.uint8)


def raw(name: str, dtype: str, *shape: int) -> Tensor:
    """A tensor of any bits."""
    nbytes = DTYPES[dtype].nbytes(shape)
    assert nbytes is not None  # noqa: S101 - the shapes here are whole bytes
    return Tensor(dtype, shape, noise(name, nbytes).tobytes())


def floats(name: str, dtype: str, *shape: int) -> Tensor:
    """A tensor of ordinary BF16, F16 or F32 numbers, in twelve binades."""
    t = raw(name, dtype, *shape)
    spec = DTYPES[dtype]
    mantissa = spec.mantissa_bits or 0
    exponent_bits = spec.bits - 1 - mantissa
    middle = (1 << (exponent_bits - 1)) - 1
    exponent = middle - noise(name + "/exponent", t.words.size) % 12
    keep = t.words.dtype.type(~(((1 << exponent_bits) - 1) << mantissa) & ((1 << spec.bits) - 1))
    words = (t.words & keep) | (exponent.astype(t.words.dtype) << t.words.dtype.type(mantissa))
    return Tensor(dtype, shape, words.tobytes())


def of_words(dtype: str, words: Sequence[int] | Words, *shape: int) -> Tensor:
    """A tensor of given words of 8 bits or more."""
    width = DTYPES[dtype].coding.width
    array = np.array(words, np.uint64).astype(f"<u{width // 8}")
    return Tensor(dtype, shape or (array.size,), array.tobytes())


def places(name: str, words: int, count: int) -> NDArray[np.int64]:
    """``count`` places among ``words``, ascending."""
    rank = noise(name, 8 * words).view("<u8")
    return np.sort(np.argsort(rank, kind="stable")[:count])


STEPS: Final = (1, -1, 2, -2, 1, -3, 3, 4, -5, 9, -1, 40, 1, -70)


def moved(
    name: str,
    t: Tensor,
    where: Sequence[int] | NDArray[np.int64] | int,
    *,
    steps: Sequence[int] = STEPS,
    coding: WordCoding | None = None,
) -> Tensor:
    """A tensor with some words moved, cut into words as ``coding`` says.

    Args:
        name: What the places are a function of.
        t: The tensor before.
        where: Places of words, or how many.
        steps: By how much, in turns.
        coding: The dtype's own if not given.
    """
    coding = coding or DTYPES[t.dtype].coding
    words = as_words(np.frombuffer(t.data, np.uint8), coding.width).copy()
    at = places(name, words.size, where) if isinstance(where, int) else np.asarray(where)
    step = np.resize(np.array(steps, np.int64), at.size)
    words[at] = add_steps(words[at], step, coding)
    data = words[::2] | words[1::2] << 4 if coding.width == 4 else words
    return replace(t, data=data.tobytes())
