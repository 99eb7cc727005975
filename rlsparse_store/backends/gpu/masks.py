"""The masks of contexts on a device (``specs/format.md`` section 8.2): bits, or gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from rlsparse_store.backends.gpu.packing import as_tensor, pack, unpack
from rlsparse_store.backends.numpy.masks import DENSE, ESCAPE, low_width
from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from rlsparse_store.backends.numpy.bits import Cursor

__all__ = ["DeviceMasks", "EncodedMasks", "encode_masks", "read_masks"]

_ONES: Final = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class EncodedMasks:
    """Masks as parts that still lie on the device.

    Attributes:
        parts: Their bytes.
        of_context: How many parts each context has.
    """

    parts: list[torch.Tensor]
    of_context: list[int]

    def joined(self, parts: list[bytes]) -> list[bytes]:
        """One stream per context, from the parts in main memory."""
        ends = np.cumsum(self.of_context)
        return [
            b"".join(parts[end - number : end])
            for end, number in zip(ends, self.of_context, strict=True)
        ]


def encode_masks(ranks: torch.Tensor, counts: list[int], changed: list[int]) -> EncodedMasks:
    """Code the sets of changed ranks.

    Args:
        ranks: Changed ranks, ascending within each context, context after context.
        counts: Words of each context.
        changed: Changed words of each context.
    """
    parts: list[torch.Tensor] = []
    of_context = []
    for mine, n in zip(torch.split(ranks, changed), counts, strict=True):
        found = _encode(mine, n)
        parts += found
        of_context.append(len(found))
    return EncodedMasks(parts, of_context)


def _encode(ranks: torch.Tensor, n: int) -> list[torch.Tensor]:
    k = ranks.numel()
    if k in (0, n):
        return []
    if k * DENSE >= n:
        flags = torch.zeros(n, dtype=torch.int8, device=ranks.device)
        flags[ranks.to(torch.int64)] = 1
        return [pack(flags, 1)]
    gaps = torch.diff(ranks, prepend=ranks.new_full((1,), -1)) - 1
    width = low_width(n, k)
    high = gaps >> width
    escaped = (high[high >= ESCAPE] - ESCAPE).contiguous()
    low = [pack(gaps, width)] if width else []
    return [*low, high.clamp(max=ESCAPE).to(torch.uint8), escaped.view(torch.uint8)]


@dataclass(frozen=True, slots=True)
class DeviceMasks:
    """Masks as bits: for each context a run of whole words of 32 bits.

    Attributes:
        words: The bits, as int32.
        starts: Where each context's words begin, int32.
        before: Changed words before each word's, over all contexts in order, int32.
        changed: Changed words of each context, as they should be.
        found: Bits set before each context's words, and in all.
        leaves: Whether a gap leaves its context.
    """

    words: torch.Tensor
    starts: torch.Tensor
    before: torch.Tensor
    changed: list[int]
    found: torch.Tensor
    leaves: torch.Tensor

    def require_sound(self) -> None:
        """Require that every mask has as many bits as it should.

        Raises:
            StreamError: One has not.
        """
        if bool(self.leaves):
            msg = "the gaps overrun their context"
            raise StreamError(msg)
        marked = np.diff(self.found.cpu().numpy())
        for number, k in zip(marked.tolist(), self.changed, strict=True):
            if number != k:
                msg = f"a mask marks {number} words, not {k}"
                raise StreamError(msg)


def read_masks(
    streams: Cursor, counts: list[int], changed: list[int], device: torch.device
) -> DeviceMasks:
    """Read back masks; what can only be seen on the device is checked later.

    Args:
        streams: Positioned at the first mask.
        counts: Words of each context.
        changed: Changed words of each context.
        device: Where the masks are wanted.

    Raises:
        StreamError: The streams end early, a padding bit is set, or more words of a context are
            said to have changed than it has.
    """
    sizes = [-(-n // 32) for n in counts]
    ends = np.cumsum([0, *sizes])
    bits = torch.zeros(int(ends[-1]) * 32, dtype=torch.int8, device=device)
    leaves = torch.zeros((), dtype=torch.bool, device=device)
    for start, n, k in zip(ends.tolist(), counts, changed, strict=False):
        if k > n:
            msg = f"a context of {n} words is said to have {k} changed ones"
            raise StreamError(msg)
        mine = bits[32 * start : 32 * start + n]
        if k and k == n:
            mine.fill_(1)
        elif k * DENSE >= n and k:
            mine.copy_(unpack(as_tensor(streams.take_packed(n), device), n, 1))
        elif k:
            ranks = _read_gaps(streams, n, k, device)
            # One past the context would land in another's; it is noted, and kept within.
            leaves |= ranks[-1] >= n
            mine[ranks.clamp(max=n - 1)] = 1
    words = pack(bits, 1)
    ones = _ONES.to(device)[words.to(torch.int64)].view(-1, 4).sum(1)
    total = torch.cat([ones.new_zeros(1), torch.cumsum(ones, 0)])
    return DeviceMasks(
        words=words.view(torch.int32),
        starts=torch.from_numpy(ends.astype(np.int32)).to(device),
        before=total[:-1].to(torch.int32),
        changed=changed,
        found=total[torch.from_numpy(ends).to(device)],
        leaves=leaves,
    )


def _read_gaps(streams: Cursor, n: int, k: int, device: torch.device) -> torch.Tensor:
    """The ranks of a context whose mask is coded as gaps; the last one may lie beyond it."""
    width = low_width(n, k)
    low = unpack(as_tensor(streams.take_packed(k * width), device), k, width)
    high_bytes = streams.take(k)
    escapes = streams.take(4 * int(np.count_nonzero(high_bytes == ESCAPE))).tobytes()
    high = as_tensor(high_bytes, device).to(torch.int64)
    if escapes:
        far = torch.from_numpy(np.frombuffer(escapes, "<u4").astype(np.int64)).to(device)
        high[high == ESCAPE] += far
    return torch.cumsum((high << width) + low + 1, 0) - 1
