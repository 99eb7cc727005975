"""What the benchmark asks of a codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Tensor: TypeAlias = NDArray[np.uint16]
"""The words of a bfloat16 tensor, contiguous, in the tensor's shape."""
Tensors: TypeAlias = Sequence[Tensor]

Payload = TypeVar("Payload")


class Kind(StrEnum):
    """Where a codec comes from."""

    OURS = "ours"
    PACKAGE = "package"
    RESTATED = "restated"


class UnavailableError(Exception):
    """A codec cannot run here; its message says why."""


@dataclass(frozen=True, slots=True)
class Coded(Generic[Payload]):
    """What a codec made of the tensors.

    Attributes:
        payload: What its decoder takes.
        nbytes: Bytes it would store; names, shapes and file headers are nobody's to count.
    """

    payload: Payload
    nbytes: int


class Codec(ABC, Generic[Payload]):
    """One way to store tuned tensors against base tensors.

    Attributes:
        name: In the tables.
        kind: Where it comes from.
        note: What a reader of the tables must know.
        in_place: Decoding overwrites the base, of which it is then given a private copy.
        limit_words: Slow codecs are measured on at most this many leading words.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    note: ClassVar[str] = ""
    in_place: ClassVar[bool] = False
    limit_words: ClassVar[int | None] = None

    def prepare(self, base: Tensors, tuned: Tensors) -> None:
        """Do, untimed, what comes before encoding, such as writing the input files."""

    @abstractmethod
    def encode(self, base: Tensors, tuned: Tensors) -> Coded[Payload]:
        """Store ``tuned`` against ``base``."""

    @abstractmethod
    def decode(self, base: Tensors, payload: Payload) -> Tensors:
        """Rebuild the tuned tensors."""


class PerTensor(Codec[list[bytes]]):
    """A codec that turns each tensor into bytes by itself."""

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[list[bytes]]:
        """Store every tensor."""
        stored = [self.encode_tensor(*pair) for pair in zip(base, tuned, strict=True)]
        return Coded(stored, sum(map(len, stored)))

    def decode(self, base: Tensors, payload: list[bytes]) -> Tensors:
        """Rebuild every tensor."""
        return [self.decode_tensor(*pair) for pair in zip(base, payload, strict=True)]

    @abstractmethod
    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """Store a tensor."""

    @abstractmethod
    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """Rebuild a tensor."""
