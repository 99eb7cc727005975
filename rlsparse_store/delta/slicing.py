"""Slicing a tensor on disk: parsing an index, and reading only what it selects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, SupportsIndex

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import EllipsisType

    from numpy.typing import NDArray

    Part = SupportsIndex | slice | EllipsisType
    Read = Callable[[int, NDArray[np.uint8]], None]

__all__ = ["BAND_BYTES", "Selection", "read_selection", "select"]

BAND_BYTES: Final = 8 << 20
"""Bytes of whole rows to read per call where only parts of rows are selected."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A part of a tensor.

    Attributes:
        ranges: Indices selected from each dimension.
        kept: Whether the result has the dimension; an integer index drops it.
    """

    ranges: tuple[range, ...]
    kept: tuple[bool, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the result."""
        return tuple(len(r) for r, kept in zip(self.ranges, self.kept, strict=True) if kept)


def select(shape: tuple[int, ...], index: Part | tuple[Part, ...]) -> Selection:
    """Parse an index of integers, slices and an ellipsis, as NumPy does.

    Args:
        shape: Dimensions of the tensor.
        index: The index.

    Raises:
        IndexError: It is out of range, or a slice has a negative step.
        TypeError: It has another kind of element.

    Example:
        >>> select((8, 6), (slice(0, 2), ...)).shape
        (2, 6)
    """
    parts = index if isinstance(index, tuple) else (index,)
    full = slice(None)
    places = [place for place, part in enumerate(parts) if part is ...]
    missing = len(shape) - len(parts) + len(places)
    if missing < 0 or len(places) > 1:
        msg = f"{len(parts)} indices for a tensor of {len(shape)} dimensions"
        raise IndexError(msg)
    at = places[0] if places else len(parts)
    filled = (*parts[:at], *[full] * missing, *parts[at + 1 :])
    ranges = tuple(_range(part, size) for part, size in zip(filled, shape, strict=True))
    return Selection(ranges, tuple(isinstance(part, slice) for part in filled))


def _range(part: Part, size: int) -> range:
    if isinstance(part, slice):
        found = range(*part.indices(size))
        if found.step < 0:
            msg = "a slice has a negative step: flip the result instead"
            raise IndexError(msg)
        return found
    if isinstance(part, bool) or not isinstance(part, SupportsIndex):
        msg = f"{type(part).__name__} in an index: only integers, slices and ... are supported"
        raise TypeError(msg)
    place = part.__index__()
    if not -size <= place < size:
        msg = f"index {place} is out of range for a dimension of {size}"
        raise IndexError(msg)
    return range(place % size, place % size + 1)


def read_selection(
    read: Read, shape: tuple[int, ...], selection: Selection, itemsize: int
) -> NDArray[np.uint8]:
    """Read a selection row by row, buffering at most ``BAND_BYTES``.

    Args:
        read: Fills memory with the tensor's bytes from an offset on; called front to back.
        shape: Dimensions of the tensor.
        selection: The selection.
        itemsize: Bytes of an element.

    Returns:
        The selected bytes, row by row.
    """
    # Bytes become the last dimension, and all of it is selected.
    ranges = (*selection.ranges, range(itemsize))
    out = np.empty([len(r) for r in ranges], np.uint8)
    if out.size:
        _read_rows(read, 0, (*shape, itemsize), ranges, out)
    return out.reshape(-1)


def _read_rows(
    read: Read,
    start: int,
    shape: tuple[int, ...],
    ranges: tuple[range, ...],
    out: NDArray[np.uint8],
) -> None:
    """Fill ``out`` with the selection from the rows that begin at byte ``start``."""
    rows, row_bytes = ranges[0], math.prod(shape[1:])
    whole_rows = all(r == range(size) for r, size in zip(ranges[1:], shape[1:], strict=True))
    if whole_rows and rows.step == 1:
        read(start + rows.start * row_bytes, out.reshape(-1))
    elif row_bytes > BAND_BYTES:
        for row, part in zip(rows, out, strict=True):
            _read_rows(read, start + row * row_bytes, shape[1:], ranges[1:], part)
    else:
        _read_bands(read, start, shape, ranges, out)


def _read_bands(
    read: Read,
    start: int,
    shape: tuple[int, ...],
    ranges: tuple[range, ...],
    out: NDArray[np.uint8],
) -> None:
    """Read bands of whole rows, and keep the selected parts."""
    rows, row_bytes = ranges[0], math.prod(shape[1:])
    inner = tuple(slice(r.start, r.stop, r.step) for r in ranges[1:])
    many = max(1, BAND_BYTES // (row_bytes * rows.step))
    for first in range(0, len(rows), many):
        some = rows[first : first + many]
        band = np.empty((some[-1] + 1 - some[0], *shape[1:]), np.uint8)
        read(start + some[0] * row_bytes, band.reshape(-1))
        out[first : first + len(some)] = band[(slice(None, None, rows.step), *inner)]
