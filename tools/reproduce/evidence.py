"""Runs the project's commands on stored deltas, and records them.

Every number of the report comes from a command that the report lists.
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
    """Output of commands that run in one folder.

    Args:
        folder: The folder. Names of deltas are relative to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._outputs: dict[str, Json] = {}
        self._recent: list[str] = []

    def run(self, command: str) -> Json:
        """The JSON output of a command, which runs once.

        Raises:
            rlsparse_store.errors.RlsparseError: The command failed.
        """
        if command not in self._outputs:
            self._outputs[command] = self._run(command)
        self._recent.append(command)
        return self._outputs[command]

    def take_commands(self) -> list[str]:
        """The commands that ran since the last call, each once."""
        commands, self._recent = list(dict.fromkeys(self._recent)), []
        return commands

    def _run(self, command: str) -> Json:
        """Run a command in this process, since starting one takes longer than most commands."""
        program, *arguments = shlex.split(command)
        stdout = StringIO()
        with chdir(self.folder), redirect_stdout(stdout):
            PROGRAMS[program].main([*arguments, "--json"], program, standalone_mode=False)
        output: Json = json.loads(stdout.getvalue())
        return output
