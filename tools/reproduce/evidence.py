"""Asks the project's own commands about stored deltas, and keeps what was asked.

Every number of the report comes through here: from a command that can be printed beside it.
"""

from __future__ import annotations

import json
import shlex
from contextlib import chdir, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.cli.commands import rlsparse
from score import main as score

if TYPE_CHECKING:
    from pathlib import Path

    import click

__all__ = ["Evidence", "Json"]

Json = dict[str, Any]

PROGRAMS: Final[dict[str, click.Command]] = {"rlsparse": rlsparse, "score.py": score}


class Evidence:
    """What commands say in one folder.

    Args:
        folder: Where they are run: names of deltas are relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._answers: dict[str, Json] = {}
        self._asked: list[str] = []

    def ask(self, command: str) -> Json:
        """What a command answers, run once.

        Raises:
            rlsparse_store.errors.RlsparseError: It failed.
        """
        if command not in self._answers:
            self._answers[command] = self._run(command)
        self._asked.append(command)
        return self._answers[command]

    def asked(self) -> list[str]:
        """The commands that were asked since the last call."""
        asked, self._asked = list(dict.fromkeys(self._asked)), []
        return asked

    def _run(self, command: str) -> Json:
        """Run a command in this process: to start one takes longer than most answers."""
        program, *arguments = shlex.split(command)
        printed = StringIO()
        with chdir(self.folder), redirect_stdout(printed):
            PROGRAMS[program].main([*arguments, "--json"], program, standalone_mode=False)
        answer: Json = json.loads(printed.getvalue())
        return answer
