"""Work on many pieces at once, results in order, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from rlsparse_store.errors import RlsparseError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

__all__ = ["Batch", "Sized", "batched", "ordered_map", "resolve_threads"]

SMALL_PIECE: Final = 64 << 10
"""Bytes: smaller pieces gain nothing from a thread, which would fight for the interpreter."""


def resolve_threads(threads: int | None) -> int:
    """The number asked for, or the processors this process may use.

    Raises:
        ValueError: It is less than one.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if threads < 1:
        msg = f"threads is {threads}; at least 1 is needed"
        raise ValueError(msg)
    return threads


class Sized(Protocol):
    """A piece of work that knows its size."""

    @property
    def nbytes(self) -> int:
        """Bytes that it reads."""


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """A piece of several items.

    Attributes:
        items: The items.
        nbytes: Their bytes.
    """

    items: list[Item]
    nbytes: int


def batched(items: Iterable[tuple[Item, int]], nbytes: int) -> Iterator[Batch[Item]]:
    """Small items in pieces that are worth a thread's while.

    Args:
        items: The items, each with its bytes.
        nbytes: Bytes of a piece at most, unless it is one item.
    """
    taken: list[Item] = []
    size = 0
    for item, own in items:
        if taken and size + own > nbytes:
            yield Batch(taken, size)
            taken, size = [], 0
        taken.append(item)
        size += own
    if taken:
        yield Batch(taken, size)


Work = TypeVar("Work", bound=Sized)
Result = TypeVar("Result")


def _begin(
    pool: ThreadPoolExecutor, function: Callable[[Work], Result], piece: Work
) -> Future[Result]:
    """Hand a piece to the pool, or do it at once if handing it over would cost more."""
    if piece.nbytes > SMALL_PIECE:
        return pool.submit(function, piece)
    done: Future[Result] = Future()
    try:
        done.set_result(function(piece))
    except RlsparseError as error:
        done.set_exception(error)  # to be raised when its turn comes
    return done


def ordered_map(
    function: Callable[[Work], Result], pieces: Iterable[Work], threads: int
) -> Generator[Result, None, None]:
    """Apply ``function`` to each piece on ``threads`` threads and yield results in order.

    A piece is begun only while fewer than twice as many are under way, so that the memory held
    does not depend on how many there are. Once it is closed, none is.
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
