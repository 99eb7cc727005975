"""Work on many pieces at once, results in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Sized", "ordered_map"]

SMALL_PIECE: Final = 64 << 10
"""Bytes: smaller pieces gain nothing from a thread, which would fight for the interpreter."""


class Sized(Protocol):
    """A piece of work that knows its size."""

    @property
    def nbytes(self) -> int:
        """Bytes that it reads."""


Work = TypeVar("Work", bound=Sized)
Result = TypeVar("Result")


def _begin(
    pool: ThreadPoolExecutor, function: Callable[[Work], Result], piece: Work
) -> Future[Result]:
    """Hand a piece to the pool, or do it at once if handing it over would cost more."""
    if piece.nbytes > SMALL_PIECE:
        return pool.submit(function, piece)
    done: Future[Result] = Future()
    done.set_result(function(piece))
    return done


def ordered_map(
    function: Callable[[Work], Result], pieces: Iterable[Work], threads: int
) -> Iterator[Result]:
    """Apply ``function`` to each piece on ``threads`` threads and yield results in order.

    A piece is begun only while fewer than twice as many are under way, so that the memory held
    does not depend on how many there are.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece in pieces:
                waiting.append(_begin(pool, function, piece))
                while len(waiting) >= 2 * threads or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
