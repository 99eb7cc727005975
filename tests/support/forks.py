"""Child processes forked from one that has already imported their modules, to save that time."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["Forks"]

LONGEST_REQUEST = 1 << 16


class Forks:
    """A server process that forks children.

    Args:
        modules: Modules that the server imports.
        env: Environment of the server, which these modules read on import.
    """

    def __init__(self, modules: Iterable[str], env: Mapping[str, str]) -> None:
        # SEQPACKET preserves message boundaries.
        self._line, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._line.settimeout(200)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(other.fileno()), *modules],
                # A process with threads must not fork.
                env={**env, "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def run_module(
        self, name: str, *arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a module as ``python -m`` does, and wait."""
        return self._run({"module": name}, arguments, env, cwd)

    def run_script(
        self, path: Path, *arguments: str | Path, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run a script, and wait."""
        return self._run({"script": str(path)}, arguments, env, None)

    def _run(
        self,
        what: dict[str, str],
        arguments: Iterable[str | Path],
        env: Mapping[str, str],
        cwd: Path | None,
    ) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        request = what | {"arguments": words, "env": dict(env), "cwd": str(cwd or os.curdir)}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            files = [out.fileno(), err.fileno()]
            socket.send_fds(self._line, [json.dumps(request).encode()], files)
            code = int(self._line.recv(100))
            out.seek(0)
            err.seek(0)
            outputs = out.read().decode(), err.read().decode()
        return subprocess.CompletedProcess(words, code, *outputs)


def serve(line: socket.socket) -> None:
    """Fork a child per request. Returns in each child after its work, and at the end."""
    # Otherwise each child's garbage collector would copy these pages at exit.
    gc.freeze()
    while True:
        request, files, *_ = socket.recv_fds(line, LONGEST_REQUEST, 2)
        if not request:
            return
        child = os.fork()
        if not child:
            line.close()
            execute(json.loads(request), files)
            return
        for file in files:
            os.close(file)
        line.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def execute(request: dict[str, Any], files: list[int]) -> None:
    """Run the module or script of a request in this process."""
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv[1:] = request["arguments"]
    if "module" in request:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))
