"""Ordered parallel map with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from rlsparse_store.errors import RlsparseError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

__all__ = ["SMALL_TASK", "Batch", "Sized", "batched", "ordered_map", "resolve_threads"]

SMALL_TASK: Final = 64 << 10
"""Bytes. Smaller tasks run on the calling thread: others would only contend for the GIL."""


def resolve_threads(threads: int | None) -> int:
    """Return ``threads``, or for ``None`` the number of processors this process may use.

    Raises:
        ValueError: ``threads`` is less than 1.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if threads < 1:
        msg = f"threads is {threads}; it must be at least 1"
        raise ValueError(msg)
    return threads


class Sized(Protocol):
    """A task with a size."""

    @property
    def nbytes(self) -> int:
        """Bytes that the task reads."""


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """Items that one task processes.

    Attributes:
        items: The items.
        nbytes: Their total size in bytes.
    """

    items: list[Item]
    nbytes: int


def batched(items: Iterable[tuple[Item, int]], nbytes: int) -> Iterator[Batch[Item]]:
    """Group items into batches, to amortize the cost of a task.

    Args:
        items: The items, each with its size in bytes.
        nbytes: Maximum size of a batch. A larger item is a batch of its own.
    """
    batch: list[Item] = []
    batch_size = 0
    for item, size in items:
        if batch and batch_size + size > nbytes:
            yield Batch(batch, batch_size)
            batch, batch_size = [], 0
        batch.append(item)
        batch_size += size
    if batch:
        yield Batch(batch, batch_size)


Task = TypeVar("Task", bound=Sized)
Result = TypeVar("Result")


def _submit(
    pool: ThreadPoolExecutor, function: Callable[[Task], Result], task: Task
) -> Future[Result]:
    """Submit a task to the pool, or run it here if it is small."""
    if task.nbytes > SMALL_TASK:
        return pool.submit(function, task)
    future: Future[Result] = Future()
    try:
        future.set_result(function(task))
    except RlsparseError as error:
        future.set_exception(error)  # raised in order
    return future


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], threads: int
) -> Generator[Result, None, None]:
    """Apply ``function`` to each task on ``threads`` threads and yield the results in order.

    At most ``2 * threads`` tasks are pending, so memory does not depend on their number. Closing
    the generator cancels pending tasks and waits for running ones.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                pending.append(_submit(pool, function, task))
                while len(pending) >= 2 * threads or (pending and pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
