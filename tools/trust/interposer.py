"""Running the command in forked children whose calls of the C library are counted, failed or ended.

A rig's process is started anew with ``interpose.c`` preloaded (:func:`start_interposed`) and
imports the library once. Each trial is a child of it, which takes the time of a fork.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "CHANGES",
    "Action",
    "Op",
    "Outcome",
    "Plan",
    "Trials",
    "run_command",
    "start_interposed",
]

_SOURCE: Final = Path(__file__).with_name("interpose.c")
_LONGEST_PATH: Final = 4096
_EVERY: Final = (1 << 63) - 1


class Op(IntEnum):
    """A kind of call, as ``interpose.c`` numbers them."""

    OPEN = 0
    CREATE = 1
    READ = 2
    WRITE = 3
    FLUSH = 4
    RENAME = 5
    LINK = 6
    UNLINK = 7
    MKDIR = 8
    RMDIR = 9
    RESIZE = 10
    TOUCH = 11
    STAT = 12
    LIST = 13
    CLOSE = 14
    ALLOCATE = 15
    SOCKET = 16
    THREAD = 17
    TRANSFER = 18
    PRINT = 19


CHANGES: Final = frozenset(
    {
        *(Op.CREATE, Op.WRITE, Op.FLUSH, Op.RENAME, Op.LINK),
        *(Op.UNLINK, Op.MKDIR, Op.RMDIR, Op.RESIZE, Op.TOUCH),
    }
)
"""Calls that change the file system, or when a change is on the disk."""


class Action(IntEnum):
    """What happens at the calls of a plan."""

    COUNT = 0
    FAIL = 1
    SHORTEN = 2
    KILL = 3
    KILL_HALFWAY = 4
    RECORD = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which calls of a trial are hit, and how.

    Attributes:
        action: What happens.
        ops: The kinds of calls that count.
        first: The first call that is hit, counted from 1.
        last: The last one; by default only the first.
        error: The error of calls that fail.
        log: Descriptor of the record.
    """

    action: Action = Action.COUNT
    ops: frozenset[Op] = frozenset()
    first: int = 1
    last: int | None = None
    error: int = 0
    log: int = -1


class _Plan(ctypes.Structure):
    _fields_ = (
        ("action", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("ops", ctypes.c_uint32),
        ("log", ctypes.c_int32),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("folder", ctypes.c_char * _LONGEST_PATH),
    )


class _Shared(ctypes.Structure):
    _fields_ = (
        ("counted", ctypes.c_int64),
        ("hit", ctypes.c_int64),
        ("op", ctypes.c_int32),
        ("place", ctypes.c_char * _LONGEST_PATH),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        code: The exit code; minus the signal that ended it.
        out: Its standard output.
        err: Its standard error.
        is_hung: Whether it had to be killed, for it did not end.
        counted: Calls that counted.
        hit: Calls that were hit.
        op: The kind of the last call that was hit.
        place: Its path.
    """

    code: int
    out: str
    err: str
    is_hung: bool
    counted: int
    hit: int
    op: Op
    place: str


def start_interposed(environment: dict[str, str]) -> None:
    """Start this script anew with the interposer preloaded. Returns in the new process.

    Args:
        environment: More variables of the new process.
    """
    if "TRUST_INTERPOSER" in os.environ:
        return
    library = Path(tempfile.mkdtemp(prefix="trust-")) / "interpose.so"
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-fno-builtin", "-shared", "-fPIC"]
    # Extensions look functions up when they are first called, unless all are bound at the start.
    subprocess.run([*command, "-o", library, _SOURCE, "-ldl", "-lpthread"], check=True)  # noqa: S603
    more = {"LD_PRELOAD": str(library), "LD_BIND_NOW": "1", "TRUST_INTERPOSER": str(library)}
    # A process with threads must not fork.
    more |= {"OPENBLAS_NUM_THREADS": "1"}
    os.execve(  # noqa: S606 - itself
        sys.executable, [sys.executable, *sys.argv], {**os.environ, **more, **environment}
    )


@dataclass
class Trials:
    """Runs functions in children, with calls below a folder interposed.

    Attributes:
        folder: The folder.
        limit: Seconds after which a child counts as hung.
    """

    folder: Path
    limit: float = 120.0
    _memory: mmap.mmap = field(init=False)
    _library: ctypes.CDLL = field(init=False)

    def __post_init__(self) -> None:
        """Load the interposer, which is loaded already."""
        self._memory = mmap.mmap(-1, ctypes.sizeof(_Shared))
        self._library = ctypes.CDLL(os.environ["TRUST_INTERPOSER"])

    def deny_allocations_of(self, names: Iterable[str]) -> None:
        """Let the allocations of these loaded libraries count.

        Args:
            names: Regular expressions that match their paths.
        """
        pattern = re.compile("|".join(names))
        ranges: list[int] = []
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            span, mode, *_, path = line.split(None, 5) if line.count("/") else (line, "", "")
            if "x" in mode and pattern.search(path):
                ranges += [int(end, 16) for end in span.split("-")]
        numbers = (ctypes.c_uint64 * len(ranges))(*ranges)
        self._library.trust_callers(numbers, len(ranges) // 2)

    def run(self, work: Callable[[], int], plan: Plan, kill_after: float | None = None) -> Outcome:
        """Run a function in a child.

        Args:
            work: Returns the exit code.
            plan: What happens to its calls.
            kill_after: Seconds after which it is killed.
        """
        shared = _Shared.from_buffer(self._memory)
        ctypes.memset(ctypes.addressof(shared), 0, ctypes.sizeof(shared))
        out, err = os.memfd_create("out"), os.memfd_create("err")
        child = os.fork()
        if not child:
            self._run_child(work, plan, shared, (out, err))
        is_hung = False
        waiting = os.pidfd_open(child)
        if not select.select([waiting], [], [], self.limit if kill_after is None else kill_after)[
            0
        ]:
            is_hung = kill_after is None
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(waiting)
        place = shared.place.decode("utf-8", "replace")
        return Outcome(
            code=code,
            out=_text(out),
            err=_text(err),
            is_hung=is_hung,
            counted=shared.counted,
            hit=shared.hit,
            op=Op(shared.op),
            place=place.removeprefix(str(self.folder)),
        )

    def _run_child(
        self, work: Callable[[], int], plan: Plan, shared: _Shared, outputs: tuple[int, int]
    ) -> None:
        code = 1
        try:
            for number, output in enumerate(outputs, 1):
                os.dup2(output, number)
            arguments = _Plan(
                action=plan.action,
                error=plan.error,
                ops=sum(1 << op for op in plan.ops),
                log=plan.log,
                first=plan.first,
                last=plan.first if plan.last is None else min(plan.last, _EVERY),
                folder=os.fsencode(self.folder),
            )
            self._library.trust_arm(ctypes.byref(arguments), ctypes.byref(shared))
            code = work()
            # As Python does before it exits.
            for thread in threading.enumerate():
                if not thread.daemon and thread is not threading.current_thread():
                    thread.join()
        except BaseException:  # noqa: BLE001 - nothing of the parent may run here
            traceback.print_exc()
        finally:
            self._library.trust_disarm()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _text(file: int) -> str:
    with os.fdopen(file, "rb") as opened:
        opened.seek(0)
        return opened.read().decode("utf-8", "replace")


def run_command(arguments: Sequence[str]) -> int:
    """Run the command in this process, and return its exit code."""
    from rlsparse_store.cli.main import main  # noqa: PLC0415 - once the environment is set

    sys.argv = ["rlsparse", *arguments]
    # The parent's are those of its terminal or of a test.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    try:
        main()
    except SystemExit as error:
        sys.stdout.flush()
        return error.code if isinstance(error.code, int) else int(error.code is not None)
