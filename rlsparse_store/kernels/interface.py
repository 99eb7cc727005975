"""Interface of a backend: the inner loops over words.

A backend takes a chunk as arrays of words. ``specs/format.md`` section 4 defines the streams; the
NumPy backend defines them, and the encoder's choices, in code. Every other backend equals it bit
for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rlsparse_store.format.words import to_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import WordCoding
    from rlsparse_store.format.words import Words

__all__ = [
    "MAGNITUDE_CLASSES",
    "TILE",
    "ChangeList",
    "ChangedWords",
    "Changes",
    "ChunkStreams",
    "ChunkWords",
    "CpuBackend",
    "Draft",
    "DraftRules",
    "Histogram",
    "Rows",
    "SmallDrafts",
    "SmallTensors",
    "Streams",
    "check_exchange",
    "place_in_row",
    "row_count",
]

MAGNITUDE_CLASSES = 12
"""Classes of |step| in a histogram: 1, 2, 3, then one per bit length of |step| - 3."""


def row_count(words: int, length: int, offset: int) -> int:
    """Count the rows of ``length`` words that overlap ``words`` words from ``offset`` on."""
    return -(-(offset + words) // length) if words else 0


def place_in_row(first: int, row_words: int | None) -> tuple[int, int] | None:
    """Return the words per row, and the position of a word in its row; ``None`` without rows."""
    return None if row_words is None else (row_words, first % row_words)


def check_exchange(words: Words, mask: NDArray[np.uint8], values: Words) -> None:
    """Check dtypes, sizes and flags of the arguments of :meth:`CpuBackend.exchange`.

    Raises:
        ValueError: The arrays do not match, or cannot be written.
    """
    if words.dtype != values.dtype:
        raise ValueError(f"the values are {values.dtype}, the words {words.dtype}")
    if mask.dtype != np.uint8 or mask.size != -(-words.size // 8):
        raise ValueError(f"the mask must be uint8, one bit for each of {words.size} words")
    if not (words.flags.writeable and values.flags.writeable):
        raise ValueError("words and values are swapped in place, but one of them is read-only")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a chunk that have changed words.

    Attributes:
        active: One flag per row that overlaps the chunk.
        length: Words of a row.
        offset: Position of the chunk's first word within its row.
    """

    active: NDArray[np.bool_]
    length: int
    offset: int

    def word_flags(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return for each word from ``start`` to ``stop`` whether its row is active."""
        first = (self.offset + start) // self.length
        last = (self.offset + stop - 1) // self.length
        flags = np.repeat(self.active[first : last + 1], self.length)
        skip = self.offset + start - first * self.length
        return flags[skip : skip + stop - start]


TILE = 4096
"""Words per tile, the sampling unit of a histogram."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Summary of the changes in a range of words.

    Attributes:
        count: Changed words.
        top_key: The largest key of a changed base word; 0 if no word changed.
    """

    count: int
    top_key: int

    def __add__(self, other: Changes) -> Changes:
        """Return the changes of both ranges."""
        return Changes(self.count + other.count, max(self.top_key, other.top_key))


@dataclass(frozen=True, slots=True, eq=False)
class ChangedWords(Changes):
    """The changed words of a range. Only the CPU lists them.

    Attributes:
        mask: One bit per word, 1 if the word changed; uint8, ``ceil(words / 8)`` bytes.
        before: The base words that changed, in order.
        after: The tuned words that changed, in order.
    """

    mask: NDArray[np.uint8]
    before: Words
    after: Words

    @classmethod
    def none(cls, words: Words) -> ChangedWords:
        """Those of words that did not change."""
        empty = np.empty(0, words.dtype)
        return cls(0, 0, np.zeros(-(-words.size // 8), np.uint8), empty, empty)


class ChangeList:
    """The changed words of consecutive ranges. A list that is cleared keeps its memory."""

    def __init__(self) -> None:
        self._mask = np.empty(0, np.uint8)
        self._before: Words = np.empty(0, np.uint8)
        self._after: Words = np.empty(0, np.uint8)
        self.clear()

    def clear(self) -> None:
        """Remove all ranges."""
        self._words = self._count = self._top_key = 0

    def reserve(self, words: int, dtype: np.dtype[Any]) -> tuple[NDArray[np.uint8], Words, Words]:
        """Return memory for the next range: its mask, and base and tuned words that changed.

        Args:
            words: Words of the range. All ranges but the last are a multiple of 8 words long.
            dtype: Type of the words.
        """
        if self._before.dtype != dtype:
            self._before, self._after = np.empty(0, dtype), np.empty(0, dtype)
        end = self._count + words
        if end > self._before.size:
            # Untouched pages cost nothing, so the arrays may be larger than needed.
            self._before = _enlarge(self._before, self._count, end)
            self._after = _enlarge(self._after, self._count, end)
        start, stop = self._words // 8, -(-(self._words + words) // 8)
        if stop > self._mask.size:
            self._mask = _enlarge(self._mask, start, stop)
        free = slice(self._count, end)
        return self._mask[start:stop], self._before[free], self._after[free]

    def add(self, words: int, changes: Changes) -> Changes:
        """Add the range of ``words`` words that was written to reserved memory."""
        self._words += words
        self._count += changes.count
        self._top_key = max(self._top_key, changes.top_key)
        return changes

    def first(self, words: int) -> ChangedWords:
        """Return the changes of the first ``words`` words. No later word has changed."""
        mask = self._mask[: -(-words // 8)]
        before, after = self._before[: self._count], self._after[: self._count]
        return ChangedWords(self._count, self._top_key, mask, before, after)


Word = TypeVar("Word", bound=np.unsignedinteger[Any])


def _enlarge(array: NDArray[Word], used: int, size: int) -> NDArray[Word]:
    """Copy the used part of an array to one of at least ``size`` elements."""
    larger = np.empty(2 * size, array.dtype)
    larger[:used] = array[:used]
    return larger


@dataclass(frozen=True, slots=True)
class ChunkWords:
    """Words of a chunk to encode.

    Attributes:
        first: Number of the first word in its tensor.
        base: Base words.
        row_words: Words per row of the tensor; ``None`` if the tensor has no rows.
        changes: Its changed words.
    """

    first: int
    base: Words
    row_words: int | None
    changes: ChangedWords

    @property
    def place(self) -> tuple[int, int] | None:
        """Words per row, and the position of the first word in its row; ``None`` without rows."""
        return place_in_row(self.first, self.row_words)

    def tuned(self, backend: CpuBackend) -> Words:
        """Return the tuned words: the base words, with the changes made."""
        words = self.base.copy()
        backend.exchange(words, self.changes.mask, self.changes.after.copy())
        return words


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of words and of step sizes by bin of base keys.

    Attributes:
        words: Words per bin.
        magnitudes: Changed words per bin and class of |step|, ``[bins, MAGNITUDE_CLASSES]``.
    """

    words: NDArray[np.int64]
    magnitudes: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """The streams of a delta chunk, each a byte string.

    In order: a mask per context; signs, one bit per changed word; classes, two bits per changed
    word; exponents, for each word of class 3 the bit length of |step| - 3, less one; low bits, the
    bits of each |step| - 3 below its leading one.

    Attributes:
        bounds: Inclusive upper key of each context.
        rows: The active rows; ``None`` without row flags.
        counts: Words of each context.
        changed: Changed words of each context.
        content: All streams, concatenated.
        sizes: Bytes of each stream.
        steps: Changed words by step: -1, -2, -3, <= -4, 1, 2, 3, >= 4.
    """

    bounds: NDArray[np.uint64]
    rows: Rows | None
    counts: list[int]
    changed: list[int]
    content: bytes | memoryview
    sizes: list[int]
    steps: list[int]

    @property
    def parts(self) -> list[bytes]:
        """The streams, one by one."""
        ends = list(accumulate(self.sizes))
        return [bytes(self.content[i:j]) for i, j in zip([0, *ends], ends, strict=False)]


class Draft(NamedTuple):
    """A chunk before compression.

    Attributes:
        bounds: Inclusive upper key of each context.
        changed: Changed words of each context.
        content: Row flags, if any, and all streams, concatenated.
        blocks: Ends of the blocks of the content.
        steps: Changed words by step, as in :class:`Streams`.
        has_row_flags: Whether the content begins with row flags.
    """

    bounds: list[int]
    changed: list[int]
    content: bytes | memoryview
    blocks: list[int]
    steps: list[int]
    has_row_flags: bool = False


ChunkStreams = tuple[tuple[int, ...], tuple[int, ...], bytes | memoryview]
"""A delta chunk without row flags: bounds, changed words of each context, all streams."""


class SmallTensors(NamedTuple):
    """Pairs of tensors that are at most one leaf long, one after the other. None is empty.

    Attributes:
        base: Base words of all.
        tuned: Tuned words of all.
        ends: End of each tensor, in words; uint64.
        row_words: Words per row of each; 0 without rows; uint64.
    """

    base: Words
    tuned: Words
    ends: NDArray[np.uint64]
    row_words: NDArray[np.uint64]


class DraftRules(NamedTuple):
    """Limits of the encoder's choices for a chunk.

    Attributes:
        few: A chunk with at most this many changes gets one context.
        sample: Changed words that a histogram samples, about.
        most_stride: Largest sampling stride of a histogram, in tiles.
        inactive_rows: Row flags are tried if at least one row in this many has no change.
    """

    few: int
    sample: int
    most_stride: int
    inactive_rows: int


class SmallDrafts(NamedTuple):
    """Drafts of small tensors.

    Attributes:
        changes: Changed words of each.
        drafts: The draft of each; ``None`` if it has no change, or the backend cannot draft it.
    """

    changes: list[int]
    drafts: list[Draft | None]


class CpuBackend(ABC):
    """The loops over words of the CPU, for one chunk. All arrays are one-dimensional."""

    name: str

    @abstractmethod
    def compare(self, base: Words, tuned: Words, coding: WordCoding, into: ChangeList) -> Changes:
        """Append the changed words to a list, and summarize them."""

    @abstractmethod
    def active_rows(self, changed: ChangedWords, words: int, length: int, offset: int) -> Rows:
        """Find the rows of ``length`` words, in ``words`` words, that have a changed word."""

    @abstractmethod
    def histogram(
        self,
        base: Words,
        changed: ChangedWords,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Rows | None,
        stride: int,
    ) -> Histogram:
        """Count words and steps of a chunk by bin of the base word's key.

        Args:
            base: Base words.
            changed: The changed words.
            coding: Width and order map of the words.
            bins: Ascending inclusive upper keys; the last is the largest possible key.
            rows: Active rows, to count only their words; ``None`` to count all.
            stride: Count each ``stride``-th tile of ``TILE`` words, starting with the first, and
                multiply the counts by ``stride``.
        """

    @abstractmethod
    def partition(
        self,
        base: Words,
        changed: ChangedWords,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts.

        Args:
            base: Base words.
            changed: The changed words.
            coding: Width and order map of the words.
            bounds: Inclusive upper keys of the contexts.
            rows: Active rows; ``None`` without row flags.
        """

    @abstractmethod
    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Group bins into contexts at minimum cost.

        Args:
            words: Words per bin.
            magnitudes: Changed words per bin and class of |step|.

        Returns:
            The ends of the contexts, in bins, and the cost of their masks and steps.
        """

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

        ``out`` may be ``base``, to decode in place. After an error, ``out`` is undefined.

        Raises:
            StreamError: The streams break the format, a flagged row has no change, or the base
                words changed during the call.
        """

    def apply_hashed(
        self,
        base: Words,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes | memoryview,
        out: Words | None,
    ) -> NDArray[np.uint64]:
        """Decode the streams as :meth:`apply` does, and hash the bytes of the tuned words.

        Args:
            base: As for :meth:`apply`, as are the others but ``out``.
            coding: Likewise.
            bounds: Likewise.
            rows: Likewise.
            changed: Likewise.
            content: Likewise.
            out: Memory for the tuned words; ``None`` if only the hashes are needed.

        Returns:
            The leaf hashes.

        Raises:
            StreamError: As for :meth:`apply`.
        """
        tuned = np.empty_like(base) if out is None else out
        self.apply(base, coding, bounds, rows, changed, content, tuned)
        return self.leaf_hashes(to_bytes(tuned, coding.width))

    @abstractmethod
    def block_ends(self, content: bytes | memoryview, ends: list[int]) -> list[int]:
        """Choose the ends of a frame's blocks at minimum cost.

        Args:
            content: The frame's content.
            ends: Ends of its streams, strictly ascending; the last is the end of the content.

        Returns:
            A subset of ``ends`` that includes the last one.
        """

    @abstractmethod
    def record(self, before: Words, after: Words) -> tuple[NDArray[np.uint8], Words]:
        """Return a mask of the changed words, and their old values.

        Args:
            before: ``n`` words: uint8, uint16, uint32 or uint64.
            after: ``n`` words of the same dtype.

        Returns:
            The mask, uint8, ``ceil(n / 8)`` bytes: bit ``i % 8`` of byte ``i // 8`` is set if word
            ``i`` changed; the bits after the last word are zero. And a new array of the changed
            words of ``before``, in order.
        """

    @abstractmethod
    def exchange(self, words: Words, mask: NDArray[np.uint8], values: Words) -> None:
        """Swap the masked words with ``values``, in order and in place.

        A second call restores the arrays. They must not share memory.

        Args:
            words: ``n`` words: uint8, uint16, uint32 or uint64.
            mask: uint8, ``ceil(n / 8)`` bytes, as :meth:`record` returns it.
            values: One word of the same dtype for each bit set in the mask.

        Raises:
            ValueError: The arrays do not match, the mask has a bit set after the last word, or
                ``words`` or ``values`` is read-only. Nothing is written.
        """

    @abstractmethod
    def leaf_hashes(self, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Hash each leaf of a byte string (:func:`rlsparse_store.format.digests.leaf_hashes`).

        Args:
            data: One-dimensional, contiguous bytes.

        Returns:
            One 64-bit hash per leaf; none for an empty string.
        """

    def changed_words(self, base: Words, tuned: Words, coding: WordCoding) -> ChangedWords:
        """List the changed words."""
        changes = ChangeList()
        self.compare(base, tuned, coding, changes)
        return changes.first(base.size)

    def draft(
        self,
        base: Words,  # noqa: ARG002 - this and the others: a backend that does it needs them
        changed: ChangedWords,  # noqa: ARG002
        coding: WordCoding,  # noqa: ARG002
        bins: NDArray[np.uint64],  # noqa: ARG002
        rows: Rows | None,  # noqa: ARG002
        stride: int,  # noqa: ARG002
        few: int,  # noqa: ARG002
    ) -> Draft | None:
        """Choose contexts, row flags and blocks, and split a chunk, all in one call.

        The overhead of the steps exceeds their work on a small tensor.

        Args:
            base: Base words.
            changed: The changed words, at least one.
            coding: Width and order map of the words.
            bins: As for :meth:`histogram`.
            rows: Active rows, if the chunk gets row flags where they save space.
            stride: As for :meth:`histogram`.
            few: A chunk with at most this many changes gets one context.

        Returns:
            What the steps give; ``None`` if the backend cannot do it for this chunk.
        """
        return None

    # Many small tensors in one call: the overhead of a call exceeds the work on one of them. These
    # methods do what the others do one by one, and hold no format.

    def draft_each(
        self,
        tensors: SmallTensors,
        coding: WordCoding,
        bins: NDArray[np.uint64],  # noqa: ARG002 - as for draft
        rules: DraftRules,  # noqa: ARG002
    ) -> SmallDrafts:
        """Compare small tensors, and draft each that changed.

        Args:
            tensors: The tensors.
            coding: Width and order map of their words, not of 4-bit ones.
            bins: As for :meth:`histogram`.
            rules: How :func:`rlsparse_store.codec.chunk.encode_chunk` chooses.
        """
        changes = [
            self.changed_words(tensors.base[start:end], tensors.tuned[start:end], coding).count
            for start, end in pairwise([0, *tensors.ends.tolist()])
        ]
        return SmallDrafts(changes, [None] * len(changes))

    def apply_each(
        self,
        base: Words,
        ends: NDArray[np.uint64],
        coding: WordCoding,
        chunks: list[ChunkStreams | None],
        out: Words | None,
        leaves: NDArray[np.uint64],
    ) -> None:
        """Decode small chunks without row flags, as :meth:`apply_hashed` does one.

        Args:
            base: Base words of the chunks, one chunk after the other. Each is at most a leaf long.
            ends: End of each chunk, in words.
            coding: Width and order map of their words, not of 4-bit ones.
            chunks: The streams of each; nothing is done for ``None``.
            out: Memory for the tuned words; ``None`` if only the hashes are needed.
            leaves: Receives the leaf hash of each decoded chunk.

        Raises:
            StreamError: The streams of one break the format.
        """
        for i, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
            streams = chunks[i]
            if streams is None:
                continue
            bounds, changed, content = streams
            leaves[i : i + 1] = self.apply_hashed(
                base[start:end],
                coding,
                np.array(bounds, np.uint64),
                None,
                list(changed),
                content,
                None if out is None else out[start:end],
            )

    def hash_each(self, data: NDArray[np.uint8], ends: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Hash byte strings that are one leaf each.

        Args:
            data: The byte strings, one after the other. None is empty.
            ends: End of each, in bytes.
        """
        places = pairwise([0, *ends.tolist()])
        return np.concatenate(
            [self.leaf_hashes(data[start:end]) for start, end in places] or [np.zeros(0, np.uint64)]
        )
