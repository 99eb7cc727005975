"""Calls of the Hub's client: within a time of ours, repeated where that is safe, errors translated.

The client waits for a silent server without an end. So each call runs on a thread of its own that
is left behind when its time is over, and does not keep the process from ending.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from rlsparse_store.errors import HubTimeoutError, RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.hub.errors import is_passing, redact_record, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.repo_id import RepoId

__all__ = ["Deadline", "call", "map_concurrently", "retry", "transfer_deadline"]

T = TypeVar("T")
Item = TypeVar("Item")

ATTEMPTS: Final = 3
AT_A_TIME: Final = 4
"""Files that are transferred at a time."""
PART: Final = 10 << 20
"""Bytes after which the client says that a transfer goes on."""
SLOWEST: Final = 100_000
"""Bytes per second: a slower transfer is taken to hang."""


class Deadline:
    """How long to wait for a sign of life.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    def renew(self) -> None:
        """There was one."""
        self._until = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether there was none for too long."""
        return time.monotonic() > self._until


def transfer_deadline(access: HubAccess, nbytes: int, *, is_watched: bool) -> Deadline:
    """Time for a transfer.

    Args:
        access: Says how long an answer may take.
        nbytes: How many bytes are to be transferred.
        is_watched: Whether the patience is renewed as they are.
    """
    part = min(nbytes, PART) if is_watched else nbytes
    return Deadline(access.timeout + part / SLOWEST)


class _Work(threading.Thread, Generic[T]):
    """A call on a thread that a process does not wait for when it ends.

    Attributes:
        result: What the call returned.
        error: What it raised.
        is_left: Whether nobody waits for it any more.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(daemon=True, name="rlsparse-hub")
        self._function = function
        self._waiting = threading.current_thread()
        self.result: T | None = None
        self.error: Exception | None = None
        self.is_left = False

    @property
    def is_heard(self) -> bool:
        """Whether someone waits for it, and for whoever waits for it."""
        return not self.is_left and _is_heard(self._waiting)

    def run(self) -> None:
        """Make the call."""
        try:
            self.result = self._function()
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            self.error = error


def _is_heard(thread: threading.Thread) -> bool:
    return not isinstance(thread, _Work) or thread.is_heard


def _is_for_someone(_: logging.LogRecord) -> bool:
    """Whether the thread that logs is one that someone waits for.

    When a process ends, the client closes its connections; a call that was left behind would then
    say that it failed and is tried again, below the error that was the reason to end.
    """
    return _is_heard(threading.current_thread())


def _watch_logs() -> None:
    for handler in logging.getLogger("huggingface_hub").handlers:
        # Adding a filter again changes nothing.
        handler.addFilter(_is_for_someone)
        handler.addFilter(redact_record)


def call(function: Callable[[], T], what: str, repo: RepoId, patience: Deadline) -> T:
    """Call the client once.

    Raises:
        HubTimeoutError: It took too long.
        RlsparseError: What the client raised, translated.
    """
    try:
        return _within(function, what, repo, patience)
    except RlsparseError:
        raise
    except Exception as error:
        raise translated(error, what, repo) from error


def retry(function: Callable[[], T], what: str, repo: RepoId, patience: Deadline) -> T:
    """Call the client for what may be done again if it fails: reading, or sending by content.

    Raises:
        HubTimeoutError: All attempts together took too long.
        RlsparseError: What the client raised at last, translated.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _within(function, what, repo, patience)
        except RlsparseError:
            raise
        except Exception as error:
            if attempt == ATTEMPTS or not is_passing(error):
                raise translated(error, what, repo) from error
        time.sleep(min(2.0 ** (attempt - 1), patience.seconds / 4))
    raise AssertionError


def _within(function: Callable[[], T], what: str, repo: RepoId, patience: Deadline) -> T:
    _watch_logs()
    work = _Work(function)
    work.start()
    try:
        while work.is_alive():
            work.join(0.05)
            if patience.is_over and work.is_alive():
                msg = (
                    f"the Hub did not answer within {patience.seconds:.0f} s for the {what}; "
                    "try again later"
                )
                raise HubTimeoutError(msg, file=printable(str(repo)))
    finally:
        work.is_left = True
    if work.error is not None:
        raise work.error
    return cast("T", work.result)  # there was no error, so it is a result


def map_concurrently(function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """Call a function of every item, a few at a time. The first error is raised at once.

    Returns:
        The results, in the order of the items.
    """
    results: dict[int, T] = {}
    pending = iter(list(enumerate(items)))
    taking = threading.Lock()
    workers: list[_Work[Any]] = []

    def work() -> None:
        while not any(worker.error for worker in workers):
            with taking:
                place, item = next(pending, (None, None))
            if place is None:
                return
            results[place] = function(cast("Item", item))

    workers += [_Work(work) for _ in range(AT_A_TIME)]
    for worker in workers:
        worker.start()
    try:
        while not any(w.error for w in workers) and (alive := [w for w in workers if w.is_alive()]):
            alive[0].join(0.02)
    finally:
        for worker in workers:
            worker.is_left = True
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    return [results[place] for place in sorted(results)]
