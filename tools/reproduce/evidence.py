"""Asks the project's own commands about stored deltas, and keeps what was asked.

Every number of the report comes through here: from a command that can be printed beside it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Evidence", "Json"]

Json = dict[str, Any]

AT_A_TIME: Final = 2

PROGRAMS: Final = {
    "rlsparse": [sys.executable, "-m", "rlsparse_store"],
    "score.py": [sys.executable, str(Path(__file__).with_name("score.py"))],
}


class Evidence:
    """What commands say in one folder.

    Args:
        folder: Where they are run: names of deltas are relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._answers: dict[str, Json] = {}
        self._asked: list[str] = []

    def prepare(self, commands: Iterable[str]) -> None:
        """Run commands ahead of their questions, some at a time."""
        missing = [command for command in dict.fromkeys(commands) if command not in self._answers]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            self._answers.update(zip(missing, pool.map(self._run, missing), strict=True))

    def ask(self, command: str) -> Json:
        """What a command answers, run once.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        self.prepare([command])
        self._asked.append(command)
        return self._answers[command]

    def asked(self) -> list[str]:
        """The commands that were asked since the last call."""
        asked, self._asked = list(dict.fromkeys(self._asked)), []
        return asked

    def _run(self, command: str) -> Json:
        program, *arguments = shlex.split(command)
        done = subprocess.run(  # noqa: S603 - commands of this project
            [*PROGRAMS[program], *arguments, "--json"],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        answer: Json = json.loads(done.stdout)
        return answer
