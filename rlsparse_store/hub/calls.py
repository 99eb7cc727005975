"""Calls of the Hub's client: within a time of ours, repeated where that is safe, errors translated.

The client waits for a silent server without an end. So each call runs on a thread of its own that
is left behind when its time is over, and does not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from rlsparse_store.errors import HubTimeoutError, RlsparseError
from rlsparse_store.hub.failures import is_passing, translated
from rlsparse_store.storage.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlsparse_store.hub.access import HubAccess
    from rlsparse_store.hub.ids import RepoId

__all__ = ["Patience", "call", "patience_for", "read"]

T = TypeVar("T")

ATTEMPTS: Final = 3
PART: Final = 10 << 20
"""Bytes after which the client says that a transfer goes on."""
SLOWEST: Final = 100_000
"""Bytes per second: a slower transfer is taken to hang."""


class Patience:
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


def patience_for(access: HubAccess, nbytes: int, *, is_watched: bool) -> Patience:
    """Time for a transfer.

    Args:
        access: Says how long an answer may take.
        nbytes: How many bytes are to be transferred.
        is_watched: Whether the patience is renewed as they are.
    """
    part = min(nbytes, PART) if is_watched else nbytes
    return Patience(access.timeout + part / SLOWEST)


class _Work(threading.Thread, Generic[T]):
    """A call on a thread that a process does not wait for when it ends."""

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(daemon=True, name="rlsparse-hub")
        self._function = function
        self.result: T | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Make the call."""
        try:
            self.result = self._function()
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            self.error = error


def call(function: Callable[[], T], what: str, repo: RepoId, patience: Patience) -> T:
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


def read(function: Callable[[], T], what: str, repo: RepoId, patience: Patience) -> T:
    """Call the client for something that may be asked for again if it fails.

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


def _within(function: Callable[[], T], what: str, repo: RepoId, patience: Patience) -> T:
    work = _Work(function)
    work.start()
    while work.is_alive():
        work.join(0.05)
        if patience.is_over and work.is_alive():
            msg = (
                f"the Hub did not answer within {patience.seconds:.0f} s for the {what}; "
                "try again later"
            )
            raise HubTimeoutError(msg, file=shown(str(repo)))
    if work.error is not None:
        raise work.error
    return cast("T", work.result)  # there was no error, so it is a result
