"""Which parts of files are neighbours, and so can be read in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["neighbours"]


def neighbours(places: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Split parts of files into runs, each without a gap.

    Args:
        places: File, first byte and length of each part.

    Yields:
        Number of the first part of a run, and that after its last one.

    Example:
        >>> list(neighbours([(0, 10, 5), (0, 15, 5), (0, 30, 2), (1, 32, 2)]))
        [(0, 2), (2, 3), (3, 4)]
    """
    first, following = 0, None
    for i, (file, start, nbytes) in enumerate(places):
        if i and (file, start) != following:
            yield first, i
            first = i
        following = file, start + nbytes
    if places:
        yield first, len(places)
