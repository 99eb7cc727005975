"""Systems without a usable package, written plainly from their published descriptions.

They are as vectorised as NumPy allows and compare bits, also where the published encoder compares
values and so would miss a zero that changes its sign. Left out are checksums and transport, which
would only slow them down. Their speed is that of NumPy, not of the kernels some of them have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import zstandard

from peers.arrays import (
    ZSTD_LEVEL,
    changed_positions,
    narrowed,
    pack,
    pack_frame,
    unpack,
    unpack_frame,
)
from peers.base import Codec, Coded, Kind, PerTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peers.base import Array, Tensor, Tensors

XOR_BLOCK: Final = 1 << 20
"""Words XORed at a time: 2 MiB, as the published decoders do, and small enough for a cache."""


class XorZstd(PerTensor):
    """Dense XOR, one zstd-1 frame per tensor (slime, miles, SkyRL).

    Published: the bytes of both tensors are XORed and compressed; the decoder decompresses 2 MiB
    at a time and XORs them into the base. Encoding in the same blocks is ours: it saves a pass
    over memory.
    """

    name = "XOR + zstd-1"
    kind = Kind.RESTATED
    note = "slime, miles, SkyRL"
    in_place = True

    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """XOR and compress a tensor."""
        before, after = base.reshape(-1), tuned.reshape(-1)
        frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj(size=base.nbytes)
        blocks = (slice(start, start + XOR_BLOCK) for start in range(0, base.size, XOR_BLOCK))
        parts = [frame.compress((before[block] ^ after[block]).data) for block in blocks]
        return b"".join([*parts, frame.flush()])

    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """Decompress a tensor's XOR into its base."""
        words = base.reshape(-1)
        block = np.empty(min(XOR_BLOCK, words.size), np.uint16)
        with zstandard.ZstdDecompressor().stream_reader(stored) as reader:
            for start in range(0, words.size, XOR_BLOCK):
                part = block[: words.size - start]
                _fill(reader, part)
                words[start : start + part.size] ^= part
        return base


def _fill(reader: zstandard.ZstdDecompressionReader, words: Tensor) -> None:
    """Read until the words are full."""
    room = words.data.cast("B")
    while room:
        count = reader.readinto(room)
        if count == 0:
            msg = "the frame ends early"
            raise EOFError(msg)
        room = room[count:]


class GapXorZstd(PerTensor):
    """Gaps less one, and XOR values, in one zstd-1 frame per tensor (NeMo-RL).

    Published: the gap is stored as u16, u32 or u64, whichever holds the largest; the pair is
    serialised and compressed. Left out: the form for a changed range without holes, and the torch
    serialisation around the pair.
    """

    name = "gap + XOR + zstd-1"
    kind = Kind.RESTATED
    note = "NeMo-RL"
    in_place = True

    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """Store positions as gaps and values as XOR."""
        positions = changed_positions(base, tuned)
        gaps = np.diff(positions, prepend=-1)
        gaps -= 1
        xor = base.reshape(-1)[positions] ^ tuned.reshape(-1)[positions]
        return pack_frame([narrowed(gaps, "<u2", "<u4", "<u8"), xor])

    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """XOR the values into the base."""
        gaps, xor = unpack_frame(stored)
        positions = np.cumsum(gaps, dtype=np.int64)
        positions += np.arange(positions.size)
        base.reshape(-1)[positions] ^= xor
        return base


class Coordinates(PerTensor):
    """Positions as int32 and values as they are, uncompressed (TRL, vLLM, verl)."""

    name = "int32 + bf16"
    kind = Kind.RESTATED
    note = "TRL, vLLM, verl"
    in_place = True

    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """Store positions and values."""
        positions = changed_positions(base, tuned)
        return pack([positions.astype("<i4"), tuned.reshape(-1)[positions]])

    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """Scatter the values into the base."""
        positions, values = unpack(stored)
        base.reshape(-1)[positions] = values
        return base


class Pulse(Codec[bytes]):
    """Row gaps, column gaps and values of all tensors in one zstd-1 frame (PULSE v3.1).

    Published: per tensor, row gaps as u8, u16 or i32; column gaps as u16 or i32, where the column
    is absolute when the row changes; values as they are. A tensor that is not a matrix is one
    row. The JSON head is left out.
    """

    name = "PULSE v3.1"
    kind = Kind.RESTATED
    note = "grail; the published decoder loops over rows in Python, this one does not"
    in_place = True

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[bytes]:
        """Store all tensors."""
        pairs = zip(base, tuned, strict=True)
        streams = [pack(self._split(before, after)) for before, after in pairs]
        sizes = np.array([len(stream) for stream in streams])
        frame = pack_frame([sizes, np.frombuffer(b"".join(streams), np.uint8)])
        return Coded(frame, len(frame))

    def decode(self, base: Tensors, payload: bytes) -> Tensors:
        """Scatter the values into the base."""
        sizes, content = unpack_frame(payload)
        ends = np.cumsum(sizes)
        for words, start, end in zip(base, ends - sizes, ends, strict=True):
            rows, columns, values = unpack(content[start:end].tobytes())
            words.reshape(-1)[_flat(rows, columns, words.shape[-1])] = values
        return base

    @staticmethod
    def _split(base: Tensor, tuned: Tensor) -> list[Array]:
        """Row gaps, column gaps and values of one tensor."""
        width = base.shape[-1]
        different = (base != tuned).reshape(-1, width)
        positions = np.flatnonzero(different)
        counts = np.count_nonzero(different, axis=1)
        rows = np.flatnonzero(counts)
        starts = np.cumsum(counts[rows]) - counts[rows]
        row_gaps = np.zeros(positions.size, np.int32)
        row_gaps[starts] = np.diff(rows, prepend=0)
        column_gaps = np.diff(positions, prepend=0)
        column_gaps[starts] = positions[starts] - rows * width
        return [
            narrowed(row_gaps, "<u1", "<u2", "<i4"),
            narrowed(column_gaps, "<u2", "<i4"),
            tuned.reshape(-1)[positions],
        ]


def _flat(row_gaps: Array, column_gaps: Array, width: int) -> NDArray[np.int64]:
    """Flat positions: the columns summed up anew in every row."""
    if row_gaps.size == 0:
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(row_gaps)
    if row_gaps[0] == 0:
        starts = np.concatenate([[0], starts])
    columns = np.cumsum(column_gaps, dtype=np.int64)
    excess = columns[starts] - column_gaps[starts]
    rows = np.cumsum(row_gaps[starts], dtype=np.int64)
    columns += np.repeat(rows * width - excess, np.diff(starts, append=row_gaps.size))
    return columns
