"""The thread that encodes, and its exclusion of Trainer's own work on checkpoints."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["EncodingThread", "SavingGate"]


class EncodingThread:
    """A thread that does one job after the other. Errors are raised by :meth:`wait`."""

    def __init__(self) -> None:
        # At the exit of the interpreter, it finishes what it was given.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rlsparse")
        self._jobs: list[Future[None]] = []
        self._optional: list[Future[None]] = []

    @property
    def pending(self) -> int:
        """Number of jobs that are not done."""
        return sum(not job.done() for job in self._jobs)

    def add(self, job: Callable[[], None], *, is_optional: bool = False) -> None:
        """Do a job after those before it.

        Args:
            job: The job.
            is_optional: Whether nothing is lost without it.
        """
        self._jobs.append(self._pool.submit(job))
        if is_optional:
            self._optional = [other for other in self._optional if not other.done()]
            self._optional.append(self._jobs[-1])

    def wait(self, at_most: int = 0) -> None:
        """Wait until at most this number of jobs is not done.

        Raises:
            BaseException: A job failed; each error is raised once.
        """
        while self.pending > at_most:
            wait(self._jobs[:1])
            self._raise()
        self._raise()

    def drop_optional(self) -> None:
        """Drop the optional jobs that have not begun."""
        for job in self._optional:
            job.cancel()

    def _raise(self) -> None:
        while self._jobs and self._jobs[0].done():
            job = self._jobs.pop(0)
            if not job.cancelled():
                job.result()


class SavingGate:
    """Keeps the thread from changing checkpoints while Trainer saves one.

    Trainer sorts checkpoints by the times of their folders and removes the oldest.
    """

    def __init__(self) -> None:
        # Its lock may be taken again by the thread that holds it: a signal's handler may come
        # at any moment.
        self._changed = threading.Condition()
        self._is_saving = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block in which Trainer saves."""
        self._set(is_saving=True)
        try:
            yield
        finally:
            self._set(is_saving=False)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A block that uses a checkpoint. It waits until Trainer does not save."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_saving)
            yield

    @contextmanager
    def released(self) -> Iterator[None]:
        """A block in which the thread does not wait, though Trainer was interrupted in a save."""
        is_saving = self._is_saving
        self._set(is_saving=False)
        try:
            yield
        finally:
            self._set(is_saving=is_saving)

    def _set(self, *, is_saving: bool) -> None:
        with self._changed:
            self._is_saving = is_saving
            self._changed.notify_all()
