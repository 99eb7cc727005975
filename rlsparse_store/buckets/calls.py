"""Calls that wait for the network, on threads that a signal or a deadline leaves behind.

Python hears no Ctrl-C while a native call waits. So calls run on daemon threads, which do not keep
the process alive.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ATTEMPTS",
    "CONNECTIONS",
    "Retriable",
    "run_all",
    "seconds_for",
    "timeout",
    "with_retries",
]

T = TypeVar("T")

TIMEOUT: Final = "RLSPARSE_BUCKET_TIMEOUT"
"""Environment variable: timeout in seconds."""

ATTEMPTS: Final = 3
CONNECTIONS: Final = 8
"""Requests at once."""
MIN_BYTES_PER_SECOND: Final = 100_000
"""A slower transfer times out."""
FIRST_PAUSE: Final = 0.2
"""Seconds before the second attempt."""


class Retriable(Exception):  # noqa: N818 - a signal to the loop, never raised to a caller
    """A failure that may pass.

    Args:
        error: The error to raise if it does not.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def timeout() -> float:
    """Seconds to wait for a response, or for the next part of one."""
    try:
        return max(0.1, float(os.environ.get(TIMEOUT, "")))
    except ValueError:
        return 60.0


def seconds_for(nbytes: int) -> float:
    """Seconds that a transfer may take, all attempts together."""
    return timeout() + nbytes / MIN_BYTES_PER_SECOND


def with_retries(function: Callable[[bool], T]) -> T:
    """Call a function up to three times.

    Args:
        function: Raises :class:`Retriable` for a failure that may pass. Its argument is whether an
            earlier call failed, and may have had an effect nevertheless.

    Raises:
        RlsparseError: The error of the last attempt.
    """
    pause = min(FIRST_PAUSE, timeout() / 10)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function(attempt > 1)
        except Retriable as failure:
            if attempt == ATTEMPTS:
                raise failure.error from None
        time.sleep(pause * 4 ** (attempt - 1))
    raise AssertionError


def run_all(
    tasks: Sequence[Callable[[], T]], seconds: float, late: Callable[[], Exception]
) -> list[T]:
    """Run tasks on daemon threads, a few at once. Raises the first error immediately.

    Args:
        tasks: The tasks.
        seconds: Seconds that all of them may take.
        late: Makes the error for a deadline that has passed.

    Returns:
        The results, in the order of the tasks.
    """
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    pending = iter(list(enumerate(tasks)))
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                number, task = next(pending, (None, None))
            if number is None or task is None:
                return
            try:
                results[number] = task()
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                errors.append(error)

    until = time.monotonic() + seconds
    threads: list[Any] = [
        threading.Thread(target=work, daemon=True, name="rlsparse-bucket")
        for _ in range(min(CONNECTIONS, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    try:
        while not errors and (alive := [thread for thread in threads if thread.is_alive()]):
            alive[0].join(0.05)
            if time.monotonic() > until and alive[0].is_alive():
                raise late()
        if errors:
            raise errors[0]
    finally:
        errors.append(InterruptedError())  # the threads that are left take no other task
    return [results[number] for number in range(len(tasks))]
