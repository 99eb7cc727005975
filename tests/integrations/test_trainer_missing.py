"""Storing a trainer's checkpoints where accelerate, which Trainer needs, is not installed."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_ACCELERATE = """
import sys

sys.modules["accelerate"] = None
from rlsparse_store.errors import MissingDependencyError

try:
    import rlsparse_store.integrations.trainer
except MissingDependencyError as error:
    print(error)
"""


def test_the_error_names_the_extra() -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_ACCELERATE],
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.startswith("accelerate is not installed: pip install '.[trainer]'")
