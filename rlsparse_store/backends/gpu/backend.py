"""The loops of a backend over words on a device.

What touches every word is a kernel of Triton; what touches only what changed is torch. What is
chosen from a histogram is chosen on the CPU, by the same code as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from rlsparse_store.backends.choice import get_backend
from rlsparse_store.backends.gpu import kernels
from rlsparse_store.backends.gpu.contexts import ContextTable, MarkedChanges
from rlsparse_store.backends.gpu.masks import encode_masks, read_masks
from rlsparse_store.backends.gpu.packing import as_tensor, grid_of, launch, pack, unpack
from rlsparse_store.backends.interface import (
    MAGNITUDE_CLASSES,
    TILE,
    Changes,
    Histogram,
    Rows,
    Streams,
    rows_touched,
)
from rlsparse_store.backends.numpy.bits import Cursor
from rlsparse_store.backends.numpy.values import decode_far, encode_far
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rlsparse_store.dtypes import WordCoding

__all__ = ["WIDTHS", "GpuBackend", "Survey"]

WIDTHS: Final = (8, 16, 32)
"""Widths of words, in bits, that the kernels take."""

SLICE: Final = 1 << 20
"""Words that torch handles at a time, so that what it needs besides stays within megabytes."""

_FAR: Final = 3
_CLASSES_OF_FAR: Final = np.array(
    [sum(byte >> shift & 3 == _FAR for shift in (0, 2, 4, 6)) for byte in range(256)], np.int64
)


@dataclass(frozen=True, slots=True)
class Survey:
    """What changed in each block of a run of words.

    Attributes:
        numbers: Changed words of each block.
        top_keys: The largest key of a base word that changed, 0 if none did.
    """

    numbers: NDArray[np.int64]
    top_keys: NDArray[np.int64]


def _unsigned(words: torch.Tensor, width: int) -> torch.Tensor:
    """Words as int64 without a sign."""
    return words.to(torch.int64) & ((1 << width) - 1)


def _keys(words: torch.Tensor, coding: WordCoding) -> torch.Tensor:
    low = (1 << (coding.width - 1)) - 1
    if coding.order == 0:
        return words
    if coding.order == 2:
        return words & low
    return torch.where(words > low, ~words & low, words)


def _ordered(words: torch.Tensor, coding: WordCoding) -> torch.Tensor:
    low = (1 << (coding.width - 1)) - 1
    return torch.where(words > low, words ^ low, words) if coding.order == 2 else words


class GpuBackend:
    """A backend whose words are one-dimensional torch tensors of int8, int16 or int32.

    It gives the streams of the NumPy backend bit for bit. Words of other widths are refused.
    """

    name = "gpu"

    def survey(
        self, base: torch.Tensor, tuned: torch.Tensor, coding: WordCoding, block: int
    ) -> Survey:
        """What changed in each block of words, in one pass.

        Args:
            base: Words before.
            tuned: Words after, as many.
            coding: Width and order map.
            block: Words of a block, a multiple of a tile's.
        """
        words = base.numel()
        tiles = grid_of(words)
        per_block = block // kernels.TILE
        blocks = -(-tiles // per_block)
        numbers = torch.zeros(blocks * per_block, dtype=torch.int32, device=base.device)
        top_keys = torch.zeros_like(numbers)
        run = launch(kernels.survey_words, tiles)
        run(base, tuned, numbers, top_keys, words, **_constants(coding))
        sums = numbers.view(blocks, per_block).sum(1)
        unsigned = top_keys.to(torch.int64) & 0xFFFFFFFF
        tops = unsigned.view(blocks, per_block).amax(1) if blocks else sums
        both = torch.stack([sums.to(torch.int64), tops]).cpu().numpy()
        return Survey(both[0], both[1])

    def changes(self, base: torch.Tensor, tuned: torch.Tensor, coding: WordCoding) -> Changes:
        """Count the words that differ and find the largest key among them."""
        found = self.survey(base, tuned, coding, kernels.TILE)
        return Changes(int(found.numbers.sum()), int(found.top_keys.max(initial=0)))

    def active_rows(
        self, base: torch.Tensor, tuned: torch.Tensor, length: int, offset: int
    ) -> Rows:
        """Find the rows of ``length`` words that hold a changed word."""
        number = rows_touched(base.numel(), length, offset)
        active = torch.zeros(number, dtype=torch.bool, device=base.device)
        for part in _slices(base.numel()):
            places = (base[part] != tuned[part]).nonzero().view(-1)
            active[(places + (offset + part.start)) // length] = True
        return Rows(active.cpu().numpy(), length, offset)

    def histogram(
        self,
        base: torch.Tensor,
        tuned: torch.Tensor,
        coding: WordCoding,
        bins: NDArray[np.uint64],
        rows: Rows | None = None,
        every: int = 1,
    ) -> Histogram:
        """Count words and steps by bin of the base word's key, in active rows only."""
        ends = torch.from_numpy(bins.astype(np.int64)).to(base.device)
        live = None if rows is None else torch.from_numpy(rows.active).to(base.device)
        size = bins.size * MAGNITUDE_CLASSES
        words = torch.zeros(bins.size, dtype=torch.int64, device=base.device)
        moved = torch.zeros(size, dtype=torch.int64, device=base.device)
        for places in _sampled(base.numel(), every, base.device):
            if live is not None and rows is not None:
                counted = live[(places + rows.offset) // rows.length]
                places = places[counted]  # noqa: PLW2901 - fewer of the same
            before = _unsigned(base[places], coding.width)
            after = _unsigned(tuned[places], coding.width)
            binned = torch.bucketize(_keys(before, coding), ends)
            words += torch.bincount(binned, minlength=bins.size)
            differs = before != after
            step = _ordered(after[differs], coding) - _ordered(before[differs], coding)
            step = _sign_extended(step, coding.width)
            cells = binned[differs] * MAGNITUDE_CLASSES + _magnitude_class(step)
            moved += torch.bincount(cells, minlength=size)
        both = torch.cat([words, moved]).cpu().numpy() * every
        return Histogram(both[: bins.size], both[bins.size :].reshape(-1, MAGNITUDE_CLASSES))

    def partition(
        self,
        base: torch.Tensor,
        tuned: torch.Tensor,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
    ) -> Streams:
        """Split a chunk into the streams of its contexts."""
        marked = MarkedChanges(base, tuned, coding, bounds, rows)
        ranks, steps = marked.scatter()
        masks = encode_masks(ranks, marked.counts, marked.changed)
        magnitude = steps.to(torch.int64).abs()
        classes = (magnitude - 1).clamp(max=_FAR)
        nearest = classes + torch.where(steps < 0, 0, 4)
        bins = torch.bincount(nearest, minlength=8)
        far = magnitude[classes == _FAR] - _FAR
        parts = [*masks.parts, pack((steps < 0).to(torch.int32), 1), pack(classes, 2)]
        data = torch.cat([*parts, far.view(torch.uint8), bins.view(torch.uint8)]).cpu().numpy()
        *streams, far_bytes, bin_bytes = _cut(data, [*map(len, parts), 8 * len(far), 64])
        exponents, low_bits = encode_far(np.frombuffer(far_bytes, np.uint64), coding.width)
        return Streams(
            counts=marked.counts,
            changed=marked.changed,
            masks=masks.joined(streams[:-2]),
            signs=streams[-2],
            classes=streams[-1],
            exponents=exponents,
            low_bits=low_bits,
            steps=np.frombuffer(bin_bytes, np.int64).tolist(),
        )

    def apply(
        self,
        base: torch.Tensor,
        coding: WordCoding,
        bounds: NDArray[np.uint64],
        rows: Rows | None,
        changed: list[int],
        content: bytes,
        out: torch.Tensor,
    ) -> None:
        """Decode the streams and write the tuned words to ``out``, which may be ``base``.

        Raises:
            StreamError: The streams break the format, or a row is flagged that has no change.
                Unless a row is, nothing was written.
        """
        table = ContextTable(base, coding, bounds, rows)
        streams = Cursor(content)
        masks = read_masks(streams, table.counts, changed, base.device)
        steps = _read_steps(streams, sum(changed), coding.width, base.device)
        streams.finish()
        masks.require_sound()
        table.patch(masks, steps, out)

    def cheapest_cut(
        self, words: NDArray[np.int64], magnitudes: NDArray[np.int64]
    ) -> tuple[list[int], int]:
        """Cut bins into contexts at the least cost."""
        return get_backend().cheapest_cut(words, magnitudes)

    def block_starts(self, streams: list[bytes]) -> list[bool]:
        """Which streams begin a block of the frame."""
        return get_backend().block_starts(streams)

    def on_host(self, words: torch.Tensor) -> NDArray[np.unsignedinteger[Any]]:
        """The words in main memory, as NumPy has them."""
        found = words.cpu().numpy()
        unsigned: NDArray[np.unsignedinteger[Any]] = found.view(f"u{found.itemsize}")
        return unsigned


def _constants(coding: WordCoding) -> dict[str, int]:
    return {"WIDTH": coding.width, "ORDER": int(coding.order), "SIZE": kernels.TILE}


def _slices(words: int) -> Iterator[slice]:
    return (slice(start, min(start + SLICE, words)) for start in range(0, words, SLICE))


def _sampled(words: int, every: int, device: torch.device) -> Iterator[torch.Tensor]:
    """The places of the words that are counted, some at a time."""
    step = SLICE // TILE * TILE * every
    within = torch.arange(TILE, device=device)
    for start in range(0, words, step):
        tiles = torch.arange(start, min(start + step, words), TILE * every, device=device)
        places = (tiles[:, None] + within).view(-1)
        yield places[places < words]


def _sign_extended(values: torch.Tensor, width: int) -> torch.Tensor:
    return (values << (64 - width)) >> (64 - width)


def _magnitude_class(step: torch.Tensor) -> torch.Tensor:
    """The class of |step| in a histogram."""
    magnitude = step.abs()
    excess = magnitude - _FAR
    far = torch.full_like(magnitude, 2)
    for bit in range(MAGNITUDE_CLASSES - 3):
        far += (excess >= 1 << bit).to(torch.int64)
    return torch.where(magnitude <= _FAR, magnitude - 1, far)


def _read_steps(streams: Cursor, count: int, width: int, device: torch.device) -> torch.Tensor:
    """Read back ``count`` steps, as int32.

    Raises:
        StreamError: The streams end early or hold a step that no word of this width can take.
    """
    signs = streams.take_packed(count)
    classes = streams.take_packed(2 * count)
    far_count = int(_CLASSES_OF_FAR[classes].sum())
    far = decode_far(streams, far_count, width).astype(np.int64) + _FAR
    negative = unpack(as_tensor(signs, device), count, 1) == 1
    magnitude = unpack(as_tensor(classes, device), count, 2).to(torch.int64) + 1
    if far_count:
        magnitude[magnitude > _FAR] = torch.from_numpy(far).to(device)
        limit = torch.where(negative, 1 << (width - 1), (1 << (width - 1)) - 1)
        if bool((magnitude > limit).any()):
            msg = f"a step does not fit words of {width} bits"
            raise StreamError(msg)
    return torch.where(negative, -magnitude, magnitude).to(torch.int32)


def _cut(data: NDArray[np.uint8], sizes: list[int]) -> list[bytes]:
    """Cut bytes into parts of these sizes."""
    ends = np.cumsum(sizes)
    return [data[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]
