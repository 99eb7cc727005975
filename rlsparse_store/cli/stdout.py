"""Standard output: an error in writing to it names it."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["name_output", "silence_output"]


class _Named(io.FileIO):
    """A file without a name of its own, whose errors say which it is."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


def name_output() -> None:
    """Write standard output such that errors name it, whoever writes.

    Only the file itself knows: an error of it looks like one of any other file.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):  # closed, or replaced by who calls us
        return
    raw = _Named(stream.fileno(), "wb", closefd=False)
    raw.name = stream.name
    sys.stdout = io.TextIOWrapper(
        # Not held back where Python was told not to.
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def silence_output() -> None:
    """Keep Python from complaining once more that standard output cannot be flushed."""
    if sys.stdout is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
