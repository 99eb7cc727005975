"""Work in a child process, whose death or silence is an outcome like any other."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import struct
import time
import traceback
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from result import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from result import Result

PATIENCE: Final = 300
"""Seconds that a batch may take."""


class Died(NamedTuple):
    """A child that did not finish: how it ended, and the last place that it gave."""

    how: str
    place: int


class Place:
    """A number that a child gives and its parent can read after the child's death."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    def set(self, place: int) -> None:
        """Give the number."""
        self._shared[:] = struct.pack("<q", place)

    def get(self) -> int:
        """The number that was given last."""
        place: int = struct.unpack("<q", self._shared[:])[0]
        return place


def in_fork(work: Callable[[Place], Any], seconds: float) -> Any | Died:  # noqa: ANN401 - any JSON
    """Call a function in a forked child.

    Args:
        work: Gets a :class:`Place`; returns what JSON can hold.
        seconds: How long it may take.

    Returns:
        What it returned, or how the child died.
    """
    place = Place()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads, such as those of a test's runner. The child waits for none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _run(work, place, writing)
    os.close(writing)
    try:
        told = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
    if told is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if told is None:
        return Died(f"took more than {seconds:.0f} s", place.get())
    if status:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else told.decode()
        return Died(how, place.get())
    return json.loads(told)


def run_batches(batch: Callable[[int, Place], Any], result: Result, seconds: float) -> None:
    """Do batches in children until the time is up.

    Args:
        batch: Gets a seed and a :class:`Place`; returns counts and faults, each with its case.
        result: Takes what they return, or how a child died.
        seconds: How long to begin new ones.
    """
    for seed in result.seeds(seconds):
        found = in_fork(partial(batch, seed), PATIENCE)
        if isinstance(found, Died):
            how = found.how.strip().splitlines()[-1]
            result.add({}, [Fault(f"the process ended: {how}", f"{seed}/{found.place}")])
            continue
        counts, faults = found
        result.add(counts, [Fault(what, case) for what, case in faults])


def _run(work: Callable[[Place], Any], place: Place, writing: int) -> None:
    status = 1
    try:
        told = json.dumps(work(place)).encode()
        status = 0
    except BaseException:  # noqa: BLE001 - told to the parent
        told = traceback.format_exc().encode()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(told)
    os._exit(status)


def _read(reading: int, end: float) -> bytes | None:
    """Everything that comes until the child ends; ``None`` if that takes too long."""
    told = b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(reading, 1 << 16)
        if not part:
            return told
        told += part
