"""Shell completion of commands, options and paths."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rlsparse enc", "encode"),
        ("rlsparse encode --keep", "--keep-dtype"),
        ("rlsparse encode ba", "file"),
        ("rlsparse encode base tu", "file"),
        ("rlsparse apply delta -o pla", "file"),
        ("rlsparse encode --cast b", "bf16"),
    ],
)
def test_completions(shell: str, words: str, expected: str) -> None:
    environment = {
        "PATH": os.defpath,
        "_RLSPARSE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rlsparse_store"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in re.split(r"[,\s]+", done.stdout)
