"""Calls of the Hub client with timeouts, retries and translated errors.

``huggingface_hub`` waits forever for a silent server. So each call runs on a daemon thread: it is
abandoned after a timeout and does not keep the process alive.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from rlsparse_store.errors import HubTimeoutError, RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.hub.errors import is_transient, redact_record, translate_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.repo_id import RepoId

__all__ = ["Deadline", "call", "map_concurrently", "retry", "transfer_deadline"]

T = TypeVar("T")
Item = TypeVar("Item")

ATTEMPTS: Final = 3
MAX_TRANSFERS: Final = 4
"""Concurrent transfers."""
PROGRESS_BYTES: Final = 10 << 20
"""Bytes between two progress reports of the client."""
MIN_BYTES_PER_SECOND: Final = 100_000
"""A slower transfer times out."""


class Deadline:
    """A timeout that restarts at each sign of progress.

    Args:
        seconds: Timeout in seconds.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    def renew(self) -> None:
        """Restart the timeout."""
        self._until = time.monotonic() + self.seconds

    @property
    def has_passed(self) -> bool:
        """Whether the timeout has elapsed."""
        return time.monotonic() > self._until


def transfer_deadline(access: HubAccess, nbytes: int, *, reports_progress: bool) -> Deadline:
    """Return the deadline of a transfer.

    Args:
        access: Gives the timeout of a response.
        nbytes: Bytes to transfer.
        reports_progress: Whether the deadline is renewed during the transfer.
    """
    part = min(nbytes, PROGRESS_BYTES) if reports_progress else nbytes
    return Deadline(access.timeout + part / MIN_BYTES_PER_SECOND)


class _CallThread(threading.Thread, Generic[T]):
    """A daemon thread that runs one call.

    Attributes:
        result: The call's return value.
        error: The call's exception.
        is_abandoned: Whether the caller has stopped waiting.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(daemon=True, name="rlsparse-hub")
        self._function = function
        self._caller = threading.current_thread()
        self.result: T | None = None
        self.error: Exception | None = None
        self.is_abandoned = False

    @property
    def has_caller(self) -> bool:
        """Whether the caller, and its own caller, still wait."""
        return not self.is_abandoned and _has_caller(self._caller)

    def run(self) -> None:
        """Run the call."""
        try:
            self.result = self._function()
        except Exception as error:  # noqa: BLE001 - the caller raises it
            self.error = error


def _has_caller(thread: threading.Thread) -> bool:
    return not isinstance(thread, _CallThread) or thread.has_caller


def _is_relevant(_: logging.LogRecord) -> bool:
    """Return whether the logging thread still has a caller.

    When the process exits, the client closes its connections. An abandoned call would then log that
    it failed and retries, after the error that ended the process.
    """
    return _has_caller(threading.current_thread())


def _filter_client_logs() -> None:
    for handler in logging.getLogger("huggingface_hub").handlers:
        # Adding a filter twice has no effect.
        handler.addFilter(_is_relevant)
        handler.addFilter(redact_record)


def call(function: Callable[[], T], what: str, repo: RepoId, deadline: Deadline) -> T:
    """Call the client once.

    Raises:
        HubTimeoutError: The deadline passed.
        RlsparseError: The client's error, translated.
    """
    try:
        return _run(function, what, repo, deadline)
    except RlsparseError:
        raise
    except Exception as error:
        raise translate_error(error, what, repo) from error


def retry(function: Callable[[], T], what: str, repo: RepoId, deadline: Deadline) -> T:
    """Call the client and retry transient errors. The call must be idempotent.

    Raises:
        HubTimeoutError: The deadline of all attempts together passed.
        RlsparseError: The client's last error, translated.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _run(function, what, repo, deadline)
        except RlsparseError:
            raise
        except Exception as error:
            if attempt == ATTEMPTS or not is_transient(error):
                raise translate_error(error, what, repo) from error
        time.sleep(min(2.0 ** (attempt - 1), deadline.seconds / 4))
    raise AssertionError


def _run(function: Callable[[], T], what: str, repo: RepoId, deadline: Deadline) -> T:
    _filter_client_logs()
    thread = _CallThread(function)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.05)
            if deadline.has_passed and thread.is_alive():
                msg = (
                    f"the Hub did not answer within {deadline.seconds:.0f} s (the {what}); try "
                    "again later"
                )
                raise HubTimeoutError(msg, file=printable(str(repo)))
    finally:
        thread.is_abandoned = True
    if thread.error is not None:
        raise thread.error
    return cast("T", thread.result)  # without an error there is a result


def map_concurrently(function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """Apply a function to all items on a few threads. Raises the first error immediately.

    Returns:
        The results, in the order of the items.
    """
    results: dict[int, T] = {}
    pending = iter(list(enumerate(items)))
    lock = threading.Lock()
    threads: list[_CallThread[Any]] = []

    def work() -> None:
        while not any(thread.error for thread in threads):
            with lock:
                position, item = next(pending, (None, None))
            if position is None:
                return
            results[position] = function(cast("Item", item))

    threads += [_CallThread(work) for _ in range(MAX_TRANSFERS)]
    for thread in threads:
        thread.start()
    try:
        while not any(t.error for t in threads) and (alive := [t for t in threads if t.is_alive()]):
            alive[0].join(0.02)
    finally:
        for thread in threads:
            thread.is_abandoned = True
    for thread in threads:
        if thread.error is not None:
            raise thread.error
    return [results[position] for position in sorted(results)]
