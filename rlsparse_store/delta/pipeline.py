"""Work on many pieces at once, results in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Sized", "ordered_map"]

MOST_WAITING: Final = 128 << 20
"""Bytes of pieces that may wait or be worked on while the next one is made."""


SMALL_PIECE: Final = 64 << 10
"""Bytes: smaller pieces gain nothing from a thread, which would fight for the interpreter."""


class Sized(Protocol):
    """A piece of work that knows what memory it holds."""

    @property
    def held_bytes(self) -> int:
        """Bytes that it keeps in memory."""


Work = TypeVar("Work", bound=Sized)
Result = TypeVar("Result")


def _begin(
    pool: ThreadPoolExecutor, function: Callable[[Work], Result], piece: Work
) -> Future[Result]:
    """Hand a piece to the pool, or do it at once if handing it over would cost more."""
    if piece.held_bytes > SMALL_PIECE:
        return pool.submit(function, piece)
    done: Future[Result] = Future()
    done.set_result(function(piece))
    return done


def ordered_map(
    function: Callable[[Work], Result], pieces: Iterable[Work], threads: int
) -> Iterator[Result]:
    """Apply ``function`` to each piece on ``threads`` threads and yield results in order.

    A new piece is made only while those under way hold little memory, so that the total stays
    bounded whatever the size of the input.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece in pieces:
                waiting.append((_begin(pool, function, piece), piece.held_bytes))
                held += piece.held_bytes
                del piece
                while waiting and (held > MOST_WAITING or len(waiting) > 2 * threads):
                    future, nbytes = waiting.popleft()
                    yield future.result()
                    held -= nbytes
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
