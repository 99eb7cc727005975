"""Where the streams of chunks lie in their contents, and what of them is wrong."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.errors import StreamError
from rlsparse_store.format.masks import DENSE, ESCAPE
from rlsparse_store.gpu.kernels import sizes
from rlsparse_store.gpu.launch import main_memory
from rlsparse_store.gpu.split import low_widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rlsparse_store.gpu.context_map import ContextMap
    from rlsparse_store.kernels.interface import CodedWords

__all__ = ["StreamLayout"]

ALL: Final = -1
"""The place of a mask that marks every word of its context."""

NONE: Final = -2
"""The place of a mask that marks none."""


class StreamLayout:
    """Where the streams of chunks lie, once their contexts are counted.

    Everything is found for all chunks at once. What a place depends on is known without looking at
    the streams, but for the gaps that escape: only masks that are gaps are looked at one by one.

    Args:
        chunks: The chunks.
        marks: Their contexts.

    Attributes:
        problems: What is wrong with each chunk, as far as it is known.
        total: Changed words of all chunks.
        firsts: Place of the first step of each context, ``[chunks, SLOTS]``.
        mask_bits: The bit at which each context's mask begins, ``[chunks, SLOTS]``.
        streams: What ``sizes.STREAM_COLUMNS`` lists of each chunk.
        gaps: What ``sizes.SEGMENT_COLUMNS`` lists of each mask that is coded as gaps.
        gaps_of: The chunk of each of these.
        escaped: Where the escaped gaps of each are, among its gaps.
        dense: Of each mask that is stored as bits: chunk, first bit, words, changed words.
    """

    def __init__(self, chunks: Sequence[CodedWords], marks: ContextMap) -> None:
        self.chunks = chunks
        self.marks = marks
        self.problems: list[StreamError | None] = [None] * len(chunks)
        lengths = np.array([len(chunk.content) for chunk in chunks])
        ends = np.cumsum(lengths)
        self._starts, self._ends = ends - lengths, ends
        k = np.zeros((len(chunks), sizes.SLOTS), np.int64)
        contexts = np.array([len(chunk.changed) for chunk in chunks])
        changed = chain.from_iterable(chunk.changed for chunk in chunks)
        k[np.arange(sizes.SLOTS) < contexts[:, None]] = np.fromiter(changed, np.int64)
        self.total = int(k.sum())
        firsts = (np.cumsum(k) - k.ravel()).reshape(k.shape)
        self.firsts = firsts.astype(np.int32)
        self._require_words(k)
        if any(self.problems):
            # Nothing is asked for by numbers that cannot be true.
            return
        self._gather()
        self._find_values(k, self._find_masks(k))

    def blame(self, chunk: int, problem: str) -> None:
        """Note what is wrong with a chunk, unless something is already."""
        self.problems[chunk] = self.problems[chunk] or StreamError(problem)

    def _gather(self) -> None:
        """Put the contents one behind the other, where a device can copy them from."""
        self._words = -(-int(self._ends[-1]) // 4)
        # A word more, so that there is a byte to look at, whatever a chunk says of its streams.
        size = 4 * (self._words + 1)
        contents = [np.frombuffer(chunk.content, np.uint8) for chunk in self.chunks]
        gathered = _contiguous_contents([chunk.content for chunk in self.chunks], contents)
        if gathered is not None and gathered.size >= size:
            # As they came from a device: what is proven is what will be stored.
            self._data = gathered[:size]
            self._host = torch.from_numpy(self._data)
            return
        self._host = main_memory(size, self.marks.chunks.device)
        self._data = self._host.numpy()
        self._data[int(self._ends[-1]) :] = 0
        for start, content in zip(self._starts.tolist(), contents, strict=True):
            self._data[start : start + content.size] = content

    def load(self) -> torch.Tensor:
        """The contents on the device, and zeros for the masks that gaps make, as int32."""
        # Two words more than there are bits: what is read at any bit reads two.
        size = self._bits // 32 + 2
        content = torch.zeros(size, dtype=torch.int32, device=self.marks.chunks.device)
        content[: self._words].copy_(self._host.view(torch.int32)[:-1], non_blocking=True)
        return content

    def _require_words(self, k: NDArray[np.int64]) -> None:
        """Blame the chunks with contexts of fewer words than are said to have changed."""
        n = self.marks.counts
        for chunk, slot in np.argwhere(k > n).tolist():
            words, changed = int(n[chunk, slot]), int(k[chunk, slot])
            self.blame(chunk, f"a context of {words} words is said to have {changed} changed ones")

    def _find_masks(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the masks, and say where those of each chunk end."""
        n = self.marks.counts
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
            found = (self._data[end - k[chunk, slot] : end] == ESCAPE).nonzero()[0]
            self.escaped.append(found)
            if found.size:
                ends[chunk, slot:] += 4 * found.size
        self._require_room(ends[:, -1])
        starts = np.concatenate([self._starts[:, None], ends[:, :-1]], 1)
        high = (starts + low_bytes)[is_gaps]
        self._require_padding(chunks, high, (k * width)[is_gaps])
        bits = np.where(is_dense, 8 * starts, np.where((k == n) & (k > 0), ALL, NONE))
        dense = np.nonzero(is_dense)
        self._require_padding(dense[0], ends[dense], n[dense])
        self.dense = np.stack([dense[0], bits[dense], n[dense], k[dense]], 1)
        # Behind the contents is room for the masks that gaps make.
        taken = 32 * -(-n[is_gaps] // 32)
        bits[is_gaps] = 32 * self._words + np.cumsum(taken) - taken
        self._bits = 32 * self._words + int(taken.sum())
        columns = (np.zeros_like(taken), k[is_gaps], width[is_gaps], 8 * starts[is_gaps])
        places = (high, high + k[is_gaps], n[is_gaps], bits[is_gaps])
        self.gaps, self.gaps_of = np.stack([*columns, *places], 1), chunks
        self.mask_bits = bits
        last: NDArray[np.int64] = ends[:, -1]
        return last

    def _find_values(self, k: NDArray[np.int64], signs: NDArray[np.int64]) -> None:
        """Find what lies behind the masks of each chunk."""
        changed = k.sum(1)
        classes = signs + -(-changed // 8)
        exponents = classes + -(-changed // 4)
        self._require_room(exponents)
        every = np.arange(len(self.chunks))
        self._require_padding(every, classes, changed)
        self._require_padding(every, exponents, 2 * changed)
        columns = [self.firsts[:, 0], changed, signs, classes, exponents, self._ends]
        self.streams = np.stack(columns, 1).astype(np.int64)

    def _require_room(self, ends: NDArray[np.int64]) -> None:
        """Blame the chunks whose contents end before their streams do."""
        for chunk in np.flatnonzero(ends > self._ends).tolist():
            missing = int(ends[chunk] - self._ends[chunk])
            self.blame(chunk, f"the streams end {missing} bytes early")

    def _require_padding(
        self, chunks: NDArray[np.intp], ends: NDArray[np.int64], bits: NDArray[np.int64]
    ) -> None:
        """Blame the chunks with streams whose last byte has bits set that are not theirs.

        Args:
            chunks: The chunk of each stream.
            ends: The byte behind each.
            bits: Bits of each.
        """
        # A stream beyond its content was blamed already.
        last = self._data[np.clip(ends - 1, 0, self._data.size - 1)]
        for chunk in chunks[(bits % 8 > 0) & (last >> (bits % 8) > 0)].tolist():
            self.blame(chunk, "a padding bit is set")

    def judge_masks(self, wrong: NDArray[np.int32], unequal: NDArray[np.int32]) -> None:
        """Blame the chunks whose masks the device found wrong."""
        for place in np.flatnonzero(wrong).tolist():
            self.blame(int(self.gaps_of[place]), "the gaps overrun their context")
        for place in np.flatnonzero(unequal).tolist():
            chunk, _, _, k = self.dense[place].tolist()
            self.blame(chunk, f"a mask does not mark {k} words")

    def judge_steps(
        self, far: NDArray[np.int64], lows: NDArray[np.int64], wrong: NDArray[np.int32]
    ) -> None:
        """Blame the chunks whose steps the device found wrong, or that do not end where they do."""
        width = self.marks.coding.width
        for chunk in np.flatnonzero(wrong).tolist():
            self.blame(chunk, f"a step does not fit words of {width} bits")
        exponents = far * (4 if width <= 16 else 8)
        low_bits = self.streams[:, 4] + -(-exponents // 8)
        ends = low_bits + -(-lows // 8)
        self._require_room(ends)
        every = np.arange(len(self.chunks))
        self._require_padding(every, low_bits, exponents)
        self._require_padding(every, ends, lows)
        for chunk in np.flatnonzero(ends < self._ends).tolist():
            left = int(self._ends[chunk] - ends[chunk])
            self.blame(chunk, f"{left} bytes are left after the last stream")


def _contiguous_contents(
    contents: list[bytes | memoryview], data: list[NDArray[np.uint8]]
) -> NDArray[np.uint8] | None:
    """The array from whose first byte on contents lie one behind the other, if they do."""
    owners: dict[int, Any] = {
        id(content.obj): content.obj for content in contents if isinstance(content, memoryview)
    }
    whole = next(iter(owners.values()), None)
    if len(owners) != 1 or not isinstance(whole, np.ndarray) or whole.dtype != np.uint8:
        return None
    places = np.array([part.__array_interface__["data"][0] for part in [whole, *data]])
    ends = np.cumsum([0, *(part.size for part in data)])
    return whole if (places[1:] - places[0] == ends[:-1]).all() else None
