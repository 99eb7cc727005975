"""Bit strings: fields of fixed and of varying width, least significant bit first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlsparse_store.errors import StreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StreamReader", "pack_fields", "pack_flags", "pack_varying", "unpack_varying"]


def pack_flags(flags: NDArray[np.bool_]) -> bytes:
    """One bit per flag."""
    return np.packbits(flags, bitorder="little").tobytes()


def pack_fields(values: NDArray[np.int64], width: int) -> bytes:
    """The low ``width`` bits of each value."""
    if width == 0 or not values.size:
        return b""
    bits = (values[:, None] >> np.arange(width)) & 1
    return pack_flags(bits.astype(np.bool_).ravel())


def pack_varying(values: NDArray[np.uint64], widths: NDArray[np.int64]) -> bytes:
    """The low ``widths[i]`` bits of each ``values[i]``, as one bit string."""
    owner = np.repeat(np.arange(values.size), widths)
    place = np.arange(owner.size) - np.repeat(np.cumsum(widths) - widths, widths)
    return pack_flags(((values[owner] >> place.astype(np.uint64)) & np.uint64(1)) == 1)


def unpack_varying(bits: NDArray[np.uint8], widths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Inverse of :func:`pack_varying` on unpacked bits; every width is below 64."""
    owner = np.repeat(np.arange(widths.size), widths)
    place = np.arange(owner.size) - np.repeat(np.cumsum(widths) - widths, widths)
    values = np.zeros(widths.size, np.uint64)
    np.add.at(values, owner, bits.astype(np.uint64) << place.astype(np.uint64))
    return values


class StreamReader:
    """Reads the streams of a chunk one after the other, never past the end.

    Args:
        content: The streams.
    """

    __slots__ = ("_content", "_place")

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = np.frombuffer(content, np.uint8)
        self._place = 0

    @property
    def place(self) -> int:
        """The byte at which the next stream begins."""
        return self._place

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """The next ``nbytes`` bytes.

        Raises:
            StreamError: There are fewer.
        """
        end = self._place + nbytes
        if end > self._content.size:
            msg = f"the streams end {end - self._content.size} bytes early"
            raise StreamError(msg)
        taken = self._content[self._place : end]
        self._place = end
        return taken

    def take_bits(self, nbits: int) -> NDArray[np.uint8]:
        """The next ``nbits`` bits, one per array element.

        Raises:
            StreamError: The streams end early or a padding bit is set.
        """
        return np.unpackbits(self.take_packed(nbits), bitorder="little")[:nbits]

    def take_packed(self, nbits: int) -> NDArray[np.uint8]:
        """The bytes that the next ``nbits`` bits fill, the last one perhaps in part.

        Raises:
            StreamError: The streams end early or a padding bit is set.
        """
        taken = self.take(-(-nbits // 8))
        if nbits % 8 and taken[-1] >> (nbits % 8):
            msg = "a padding bit is set"
            raise StreamError(msg)
        return taken

    def take_fields(self, count: int, width: int) -> NDArray[np.int64]:
        """The next ``count`` fields of ``width`` bits.

        Raises:
            StreamError: The streams end early or a padding bit is set.
        """
        if width == 0:
            return np.zeros(count, np.int64)
        bits = self.take_bits(count * width).reshape(count, width)
        return bits.astype(np.int64) @ (np.int64(1) << np.arange(width, dtype=np.int64))

    def finish(self) -> None:
        """Require that everything was read.

        Raises:
            StreamError: Bytes are left over.
        """
        if self._place != self._content.size:
            msg = f"{self._content.size - self._place} bytes are left after the last stream"
            raise StreamError(msg)
