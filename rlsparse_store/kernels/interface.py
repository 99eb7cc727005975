"""What a backend does: the few hot loops, and nothing else.

A backend sees a chunk as arrays of words. What the streams must be is fixed by
``specs/format.md`` section 4; the NumPy backend is the definition in code of that and of the
encoder's choices, and every other backend must equal it bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.words import Words

__all__ = [
    "MAGNITUDE_CLASSES",
    "TILE",
    "Backend",
    "BackendWords",
    "Changes",
    "ChunkWords",
    "CodedWords",
    "CpuBackend",
    "Histogram",
    "Rows",
    "Streams",
    "check_exchange",
    "rows_touched",
]

BackendWords: TypeAlias = Any
"""Words as a backend has them: those of the CPU are NumPy's, a device's are tensors there. They are
one-dimensional and have a length, and slices that share them."""

MAGNITUDE_CLASSES = 12
"""Classes of |step| that a histogram tells apart: 1, 2, 3, then by the bits of |step| - 3."""


def rows_touched(words: int, length: int, offset: int) -> int:
    """Rows of ``length`` words that ``words`` words touch whose first is word ``offset`` of one."""
    return -(-(offset + words) // length) if words else 0


def check_exchange(words: Words, mask: NDArray[np.uint8], values: Words) -> None:
    """What a backend asks of the arrays of ``exchange`` before it looks at the mask's bits.

    Raises:
        ValueError: They do not fit together, or cannot be written.
    """
    if words.dtype != values.dtype:
        raise ValueError(f"values of {values.dtype} cannot take the place of {words.dtype}")
    if mask.dtype != np.uint8 or mask.size != -(-words.size // 8):
        raise ValueError(f"the mask must be the bytes of one bit for each of {words.size} words")
    if not (words.flags.writeable and values.flags.writeable):
        raise ValueError("words and values are swapped in place, and one of them is read-only")


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


TILE = 4096
"""Words of the tiles that a histogram takes samples of."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in a run of words.

    Attributes:
        number: Changed words.
        top_key: The largest key of a base word that changed, 0 if none did.
    """

    number: int
    top_key: int

    def __add__(self, other: Changes) -> Changes:
        """The changes of both."""
        return Changes(self.number + other.number, max(self.top_key, other.top_key))


@dataclass(frozen=True, slots=True)
class ChunkWords:
    """A chunk that is to be coded.

    Attributes:
        base: Its words before.
        tuned: Its words after.
        row: Words of a row of the tensor and the place of the chunk's first word in its row, or
            ``None`` where rows mean nothing.
        changes: What changed in it.
    """

    base: BackendWords
    tuned: BackendWords
    row: tuple[int, int] | None
    changes: Changes


@dataclass(frozen=True, slots=True)
class CodedWords:
    """A chunk that is to be decoded.

    Attributes:
        words: Its words before, which become those after.
        bounds: Inclusive upper key of each context.
        rows: The active rows, if the chunk has row flags.
        changed: Changed words of each context.
        content: The streams, without row flags.
    """

    words: BackendWords
    bounds: NDArray[np.uint64]
    rows: Rows | None
    changed: list[int]
    content: bytes | memoryview


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

    These are, one behind the other: a mask for each context; signs, one bit per changed word;
    classes, two bits per changed word; exponents, per word of class 3 the bit length of |step| - 3
    less one; low bits, those below the leading one of each |step| - 3.

    Attributes:
        counts: Words of each context.
        changed: Changed words of each context.
        content: All streams.
        sizes: Bytes of each.
        steps: Changed words by step: -1, -2, -3, <= -4, 1, 2, 3, >= 4.
    """

    counts: list[int]
    changed: list[int]
    content: bytes | memoryview
    sizes: list[int]
    steps: list[int]

    @property
    def parts(self) -> list[bytes]:
        """Each stream by itself."""
        ends = list(accumulate(self.sizes))
        return [bytes(self.content[i:j]) for i, j in zip([0, *ends], ends, strict=False)]


class Backend(Protocol):
    """The loops over words. All arrays are one-dimensional and of one chunk or block.

    What encoding asks of chunks, it asks of several at a time: a device is kept busy only so. The
    CPU looks at them one by one (:class:`CpuBackend`).
    """

    name: str

    def flag_rows(self, chunks: Sequence[ChunkWords], coding: WordCoding) -> list[Rows]:
        """Find the rows of each chunk that hold a changed word. Every chunk has rows."""

    def histograms(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Sequence[Rows | None],
        every: Sequence[int],
    ) -> list[Histogram]:
        """Count words and steps of each chunk by bin of the base word's key.

        Args:
            chunks: The chunks.
            coding: Width and order map of their words.
            bins: Ascending inclusive upper keys; the last is the largest key there is.
            rows: Of each chunk the active rows, if only those count.
            every: Of each chunk, count one in so many tiles of ``TILE`` words, the first one
                always, each word as so many.
        """

    def partitions(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bounds: Sequence[NDArray[np.uint64]],
        rows: Sequence[Rows | None],
    ) -> list[Streams]:
        """Split each chunk into the streams of its contexts.

        Args:
            chunks: The chunks.
            coding: Width and order map of their words.
            bounds: Inclusive upper keys of each chunk's contexts.
            rows: Of each chunk the active rows, if it is to have row flags.
        """

    def join(self, chunks: Sequence[CodedWords], coding: WordCoding) -> list[StreamError | None]:
        """Decode the streams of chunks, and write the words that changed over the base's.

        Args:
            chunks: The chunks.
            coding: Width and order map of their words.

        Returns:
            What is wrong with each chunk, if anything: its streams break the format, a row is
            flagged that has no change, or the base's words changed while they were read. The words
            of a wrong chunk are anything.
        """

    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Cut bins into contexts at the least cost.

        Args:
            words: Words per bin.
            magnitudes: Changed words per bin and class of |step|.

        Returns:
            The ends of the contexts, and the cost of their masks and steps.
        """


class CpuBackend(Backend, ABC):
    """A backend of the CPU, whose words are NumPy's: it looks at one chunk after the other."""

    @abstractmethod
    def changes(self, base: Words, tuned: Words, coding: WordCoding) -> Changes:
        """Count the words that differ and find the largest key among them."""

    @abstractmethod
    def active_rows(self, base: Words, tuned: Words, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""

    @abstractmethod
    def histogram(
        self,
        base: Words,
        tuned: Words,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Rows | None = None,
        every: int = 1,
    ) -> Histogram:
        """Count words and steps of a chunk, as :meth:`Backend.histograms` does of several."""

    @abstractmethod
    def partition(
        self,
        base: Words,
        tuned: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""

    @abstractmethod
    def apply(
        self,
        base: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes | memoryview,
        out: Words,
    ) -> None:
        """Decode the streams (``content`` without row flags) and write the tuned words to ``out``.

        ``out`` may be ``base``, which is then patched in place. It holds anything after an error.

        Raises:
            StreamError: The streams break the format, a row is flagged that has no change, or
                the base's words changed while they were read.
        """

    @abstractmethod
    def block_ends(self, content: bytes | memoryview, ends: list[int]) -> list[int]:
        """Where blocks of a frame end, so that together they cost the least.

        Args:
            content: The frame's content.
            ends: Where its streams end, ascending to the end of the content; none is empty.

        Returns:
            Some of these, the last one among them.
        """

    @abstractmethod
    def record(self, before: Words, after: Words) -> tuple[NDArray[np.uint8], Words]:
        """Find the words that differ, and what they were before.

        Bits, not values, decide: a word is of its array's own width.

        Args:
            before: ``n`` words, of uint8, 16, 32 or 64.
            after: As many of the same dtype.

        Returns:
            The mask: uint8, ``ceil(n / 8)`` bytes; bit ``i % 8`` of byte ``i // 8`` tells whether
            word ``i`` differs, and the bits after the last word are zero. And a new array of the
            words of ``before`` that differ, in order, of their dtype.
        """

    @abstractmethod
    def exchange(self, words: Words, mask: NDArray[np.uint8], values: Words) -> None:
        """Swap the words that have a bit in the mask with the values, in order and in place.

        Done twice, it gives back what was there. The arrays must not share memory.

        Args:
            words: ``n`` words, of uint8, 16, 32 or 64.
            mask: uint8, ``ceil(n / 8)`` bytes, as of ``record``.
            values: A word of the same dtype for each bit that is set.

        Raises:
            ValueError: The arrays do not fit together, a bit is set after the last word, or one
                that is swapped cannot be written. Nothing was written.
        """

    def flag_rows(self, chunks: Sequence[ChunkWords], coding: WordCoding) -> list[Rows]:  # noqa: ARG002 - a device compares anew
        """Find the rows of each chunk that hold a changed word."""
        return [
            self.active_rows(chunk.base, chunk.tuned, *chunk.row)
            for chunk in chunks
            if chunk.row is not None
        ]

    def histograms(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Sequence[Rows | None],
        every: Sequence[int],
    ) -> list[Histogram]:
        """Count words and steps of each chunk by bin of the base word's key."""
        return [
            self.histogram(chunk.base, chunk.tuned, coding, bins, active, step)
            for chunk, active, step in zip(chunks, rows, every, strict=True)
        ]

    def partitions(
        self,
        chunks: Sequence[ChunkWords],
        coding: WordCoding,
        bounds: Sequence[NDArray[np.uint64]],
        rows: Sequence[Rows | None],
    ) -> list[Streams]:
        """Split each chunk into the streams of its contexts."""
        return [
            self.partition(chunk.base, chunk.tuned, coding, own, active)
            for chunk, own, active in zip(chunks, bounds, rows, strict=True)
        ]

    def join(self, chunks: Sequence[CodedWords], coding: WordCoding) -> list[StreamError | None]:
        """Decode the streams of chunks, in place."""
        problems: list[StreamError | None] = []
        for c in chunks:
            try:
                self.apply(c.words, coding, c.bounds, c.rows, c.changed, c.content, c.words)
                problems.append(None)
            except StreamError as error:
                problems.append(error)
        return problems
