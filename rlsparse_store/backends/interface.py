"""What a backend does: the few loops over words, and nothing else.

A backend sees a chunk as arrays of words. What the results must be is fixed by
``specs/format.md`` section 8; the NumPy backend is its definition in code, and every other
backend must equal it bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlsparse_store.dtypes import WordCoding

__all__ = ["MAGNITUDE_CLASSES", "Backend", "Histogram", "Rows", "Streams", "Words"]

Words = NDArray[np.unsignedinteger[Any]]
"""Words of one width in a one-dimensional array: uint8 (also for 4-bit words), 16, 32 or 64."""

MAGNITUDE_CLASSES = 12
"""Classes of |step| that a histogram tells apart: 1, 2, 3, then by the bits of |step| - 3."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a chunk hold changed words.

    Attributes:
        active: One flag per row that the chunk touches.
        length: Words of a row.
        offset: Position of the chunk's first word within its row.
    """

    active: NDArray[np.bool_]
    length: int
    offset: int

    def live(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether each word from ``start`` to ``stop`` of the chunk lies in an active row."""
        first = (self.offset + start) // self.length
        last = (self.offset + stop - 1) // self.length
        flags = np.repeat(self.active[first : last + 1], self.length)
        skip = self.offset + start - first * self.length
        return flags[skip : skip + stop - start]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often each bin of base keys occurs, and how its changed words moved.

    Attributes:
        words: Words per bin.
        magnitudes: Changed words per bin and class of |step|, ``[bins, MAGNITUDE_CLASSES]``.
    """

    words: NDArray[np.int64]
    magnitudes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Streams:
    """The coded parts of a delta chunk, each a run of bytes.

    Attributes:
        counts: Words of each context.
        changed: Changed words of each context.
        masks: One stream per context.
        signs: One bit per changed word.
        classes: Two bits per changed word.
        exponents: Per word of class 3, the bit length of |step| - 3 less one.
        low_bits: The bits below the leading one of each |step| - 3.
    """

    counts: list[int]
    changed: list[int]
    masks: list[bytes]
    signs: bytes
    classes: bytes
    exponents: bytes
    low_bits: bytes


class Backend(Protocol):
    """The loops over words. All arrays are one-dimensional and of one chunk or block."""

    name: str

    def count_changed(self, base: Words, tuned: Words) -> int:
        """Count the words that differ."""

    def active_rows(self, base: Words, tuned: Words, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""

    def histogram(
        self, base: Words, tuned: Words, coding: WordCoding, bins: NDArray[np.uint64]
    ) -> Histogram:
        """Count words and steps by bin of the base word's key.

        ``bins`` are ascending inclusive upper keys; the last is the largest key there is.
        """

    def partition(
        self,
        base: Words,
        tuned: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""

    def count_contexts(
        self, base: Words, coding: WordCoding, bounds: NDArray[np.uint64], rows: Rows | None
    ) -> list[int]:
        """Count the words of each context."""

    def apply(
        self,
        base: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes,
    ) -> Words:
        """Decode the streams (``content`` without row flags) and return the tuned words.

        Raises:
            StreamError: The streams break the format.
        """
