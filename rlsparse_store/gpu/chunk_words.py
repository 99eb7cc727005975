"""Words of chunks on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from rlsparse_store.kernels.interface import Changes, Rows

__all__ = ["WIDTHS", "ChunkWords", "CodedWords"]

WIDTHS: Final = (8, 16, 32)
"""Word widths that the kernels support, in bits."""


@dataclass(frozen=True, slots=True)
class ChunkWords:
    """Words of a chunk to encode, compared.

    Attributes:
        base: Base words: int8, int16 or int32.
        tuned: Tuned words.
        row: Words per row of the tensor, and the offset of the chunk's first word in its row;
            ``None`` if the tensor has no rows.
        changes: Summary of its changes.
        bits: One bit per word of all pairs of the diff, set if it changed, as int32.
        first_group: First group of this chunk in ``bits``.
    """

    base: torch.Tensor
    tuned: torch.Tensor
    row: tuple[int, int] | None
    changes: Changes
    bits: torch.Tensor
    first_group: int


@dataclass(frozen=True, slots=True)
class CodedWords:
    """A chunk to decode.

    Attributes:
        words: Base words, which decoding replaces by the tuned words.
        bounds: Inclusive upper key of each context.
        rows: The active rows, if the chunk has row flags.
        changed: Changed words of each context.
        content: Streams, without row flags.
    """

    words: torch.Tensor
    bounds: NDArray[np.uint64]
    rows: Rows | None
    changed: list[int]
    content: bytes | memoryview
