"""Locating and validating the streams in the contents of chunks."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.errors import StreamError
from rlsparse_store.format.masks import DENSE, ESCAPE
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import host_buffer
from rlsparse_store.gpu.split import low_widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.gpu.chunk_words import CodedWords
    from rlsparse_store.gpu.context_map import ContextMap

__all__ = ["StreamLayout"]

ALL: Final = -1
"""Position of a mask that is not stored because all words of the context changed."""

NONE: Final = -2
"""Position of a mask that is not stored because no word of the context changed."""


class StreamLayout:
    """The positions of the streams of several chunks, derived from the counts of their contexts.

    Positions are computed for all chunks at once. They depend on stored bytes only through escaped
    gaps, so only gap-coded masks are read one by one.

    Args:
        chunks: The chunks.
        contexts: The contexts of the chunks' words.

    Attributes:
        problems: The first error found in each chunk, or ``None``.
        total: Changed words of all chunks.
        firsts: Position of the first step of each context, ``[chunks, SLOTS]``.
        mask_bits: First bit of each context's mask, ``[chunks, SLOTS]``.
        streams: The columns of ``sizes.STREAM_COLUMNS`` for each chunk.
        gaps: The columns of ``sizes.SEGMENT_COLUMNS`` for each gap-coded mask.
        gaps_of: Chunk of each gap-coded mask.
        escaped: Indices of the escaped gaps of each gap-coded mask.
        dense: For each dense mask: chunk, first bit, words, changed words.
    """

    def __init__(self, chunks: Sequence[CodedWords], contexts: ContextMap) -> None:
        self.chunks = chunks
        self.contexts = contexts
        self.problems: list[StreamError | None] = [None] * len(chunks)
        lengths = np.array([len(chunk.content) for chunk in chunks])
        ends = np.cumsum(lengths)
        self._starts, self._ends = ends - lengths, ends
        k = np.zeros((len(chunks), sizes.SLOTS), np.int64)
        num_contexts = np.array([len(chunk.changed) for chunk in chunks])
        changed = chain.from_iterable(chunk.changed for chunk in chunks)
        k[np.arange(sizes.SLOTS) < num_contexts[:, None]] = np.fromiter(changed, np.int64)
        self.total = int(k.sum())
        firsts = (np.cumsum(k) - k.ravel()).reshape(k.shape)
        self.firsts = firsts.astype(np.int32)
        self._check_counts(k)
        if any(self.problems):
            # Do not derive positions from impossible counts.
            return
        self._concatenate()
        self._locate_values(k, self._locate_masks(k))

    def add_problem(self, chunk: int, problem: str) -> None:
        """Record an error of a chunk, unless it already has one."""
        self.problems[chunk] = self.problems[chunk] or StreamError(problem)

    def _concatenate(self) -> None:
        """Concatenate the contents in memory that a device can copy from."""
        self._words = -(-int(self._ends[-1]) // 4)
        # One word more, so that any position has a byte, whatever the chunks claim.
        size = 4 * (self._words + 1)
        contents = [np.frombuffer(chunk.content, np.uint8) for chunk in self.chunks]
        contiguous = _contiguous_contents([chunk.content for chunk in self.chunks], contents)
        if contiguous is not None and contiguous.size >= size:
            # The encoder's own output: verify the very bytes that are stored.
            self._data = contiguous[:size]
            self._host = torch.from_numpy(self._data)
            return
        self._host = host_buffer(size, self.contexts.chunks.device)
        self._data = self._host.numpy()
        self._data[int(self._ends[-1]) :] = 0
        for start, content in zip(self._starts.tolist(), contents, strict=True):
            self._data[start : start + content.size] = content

    def load(self) -> torch.Tensor:
        """Copy the contents to the device, followed by zeros for the decoded masks, as int32."""
        # Two extra words: a read at any bit loads two words.
        size = self._bits // 32 + 2
        content = torch.zeros(size, dtype=torch.int32, device=self.contexts.chunks.device)
        content[: self._words].copy_(self._host.view(torch.int32)[:-1], non_blocking=True)
        return content

    def _check_counts(self, k: NDArray[np.int64]) -> None:
        """Report contexts with more changed words than words."""
        n = self.contexts.counts
        for chunk, slot in np.argwhere(k > n).tolist():
            words, changed = int(n[chunk, slot]), int(k[chunk, slot])
            self.add_problem(chunk, f"a context of {words} words has {changed} changed ones")

    def _locate_masks(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        """Locate the masks; return the end of each chunk's masks."""
        n = self.contexts.counts
        is_dense = (k > 0) & (k < n) & (k * DENSE >= n)
        is_gaps = (k > 0) & (k * DENSE < n)
        width = np.where(is_gaps, low_widths(n, np.maximum(k, 1)), 0)
        low_bytes = -(-k * width // 8)
        nbytes = np.where(is_dense, -(-n // 8), np.where(is_gaps, low_bytes + k, 0))
        ends = self._starts[:, None] + np.cumsum(nbytes, 1)
        self.escaped = []
        chunks, slots = np.nonzero(is_gaps)
        for chunk, slot in zip(chunks.tolist(), slots.tolist(), strict=True):
            end = ends[chunk, slot]
            escaped = (self._data[end - k[chunk, slot] : end] == ESCAPE).nonzero()[0]
            self.escaped.append(escaped)
            if escaped.size:
                ends[chunk, slot:] += 4 * escaped.size
        self._check_ends(ends[:, -1])
        starts = np.concatenate([self._starts[:, None], ends[:, :-1]], 1)
        high = (starts + low_bytes)[is_gaps]
        self._check_padding(chunks, high, (k * width)[is_gaps])
        bits = np.where(is_dense, 8 * starts, np.where((k == n) & (k > 0), ALL, NONE))
        dense = np.nonzero(is_dense)
        self._check_padding(dense[0], ends[dense], n[dense])
        self.dense = np.stack([dense[0], bits[dense], n[dense], k[dense]], 1)
        # The kernels decode gap-coded masks into the memory after the contents.
        mask_sizes = 32 * -(-n[is_gaps] // 32)
        bits[is_gaps] = 32 * self._words + np.cumsum(mask_sizes) - mask_sizes
        self._bits = 32 * self._words + int(mask_sizes.sum())
        columns = (np.zeros_like(mask_sizes), k[is_gaps], width[is_gaps], 8 * starts[is_gaps])
        positions = (high, high + k[is_gaps], n[is_gaps], bits[is_gaps])
        self.gaps, self.gaps_of = np.stack([*columns, *positions], 1), chunks
        self.mask_bits = bits
        mask_ends: NDArray[np.int64] = ends[:, -1]
        return mask_ends

    def _locate_values(self, k: NDArray[np.int64], signs: NDArray[np.int64]) -> None:
        """Locate the streams after the masks of each chunk."""
        changed = k.sum(1)
        classes = signs + -(-changed // 8)
        exponents = classes + -(-changed // 4)
        self._check_ends(exponents)
        every = np.arange(len(self.chunks))
        self._check_padding(every, classes, changed)
        self._check_padding(every, exponents, 2 * changed)
        columns = [self.firsts[:, 0], changed, signs, classes, exponents, self._ends]
        self.streams = np.stack(columns, 1).astype(np.int64)

    def _check_ends(self, ends: NDArray[np.int64]) -> None:
        """Report chunks whose streams end after their contents."""
        for chunk in np.flatnonzero(ends > self._ends).tolist():
            missing = int(ends[chunk] - self._ends[chunk])
            self.add_problem(chunk, f"the streams end {missing} bytes early")

    def _check_padding(
        self, chunks: NDArray[np.intp], ends: NDArray[np.int64], bits: NDArray[np.int64]
    ) -> None:
        """Report chunks with streams whose padding bits are set.

        Args:
            chunks: Chunk of each stream.
            ends: Offset after the last byte of each stream.
            bits: Number of bits of each stream.
        """
        # clip: _check_ends has reported streams that end after their contents.
        last = self._data[np.clip(ends - 1, 0, self._data.size - 1)]
        for chunk in chunks[(bits % 8 > 0) & (last >> (bits % 8) > 0)].tolist():
            self.add_problem(chunk, "a padding bit is set")

    def check_masks(self, wrong: NDArray[np.int32], unequal: NDArray[np.int32]) -> None:
        """Report chunks whose masks the device found invalid."""
        for mask in np.flatnonzero(wrong).tolist():
            self.add_problem(int(self.gaps_of[mask]), "the gaps overrun their context")
        for mask in np.flatnonzero(unequal).tolist():
            chunk, _, _, k = self.dense[mask].tolist()
            self.add_problem(chunk, f"a mask does not mark {k} words")

    def check_steps(
        self, far: NDArray[np.int64], lows: NDArray[np.int64], wrong: NDArray[np.int32]
    ) -> None:
        """Report chunks whose steps the device found invalid, or whose streams end too early."""
        width = self.contexts.coding.width
        for chunk in np.flatnonzero(wrong).tolist():
            self.add_problem(chunk, f"a step does not fit words of {width} bits")
        exponents = far * (4 if width <= 16 else 8)
        low_bits = self.streams[:, 4] + -(-exponents // 8)
        ends = low_bits + -(-lows // 8)
        self._check_ends(ends)
        every = np.arange(len(self.chunks))
        self._check_padding(every, low_bits, exponents)
        self._check_padding(every, ends, lows)
        for chunk in np.flatnonzero(ends < self._ends).tolist():
            left = int(self._ends[chunk] - ends[chunk])
            self.add_problem(chunk, f"{left} bytes follow the last stream")


def _contiguous_contents(
    contents: list[bytes | memoryview], data: list[NDArray[np.uint8]]
) -> NDArray[np.uint8] | None:
    """Return the array that starts with the contents, without gaps, if there is one."""
    owners: dict[int, Any] = {
        id(content.obj): content.obj for content in contents if isinstance(content, memoryview)
    }
    whole = next(iter(owners.values()), None)
    if len(owners) != 1 or not isinstance(whole, np.ndarray) or whole.dtype != np.uint8:
        return None
    addresses = np.array([part.__array_interface__["data"][0] for part in [whole, *data]])
    ends = np.cumsum([0, *(part.size for part in data)])
    return whole if (addresses[1:] - addresses[0] == ends[:-1]).all() else None
