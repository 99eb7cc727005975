"""A case's run in object storage, for the matrices of all engines."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

from loopback_s3 import LoopbackS3, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_in_bucket"]


@contextmanager
def run_in_bucket(case: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server of S3 with the run of a case.

    Args:
        case: The case.

    Yields:
        The URL of the run, and the environment variables of a client.
    """
    with LoopbackS3() as s3, tempfile.TemporaryDirectory() as home:
        s3.bucket = s3.make_bucket()
        run, variables = f"{s3.url}/run", s3.environment(Path(home))
        with mock.patch.dict(os.environ, variables):
            upload(run, case / "run")
        yield run, variables
