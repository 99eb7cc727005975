"""Standard streams: all open, and an output whose errors name it."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["name_output", "open_streams", "silence_output"]


class _Named(io.FileIO):
    """A nameless file whose errors carry a name."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


def open_streams() -> None:
    """Open the null device in place of the standard streams that the caller closed.

    Otherwise the next files get their descriptors, and text is printed into these files.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - a descriptor, kept open


def name_output() -> None:
    """Replace standard output by a stream whose errors name it.

    Otherwise they look like errors of any other file.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):  # closed, or replaced by who calls us
        return
    raw = _Named(stream.fileno(), "wb", closefd=False)
    raw.name = stream.name
    sys.stdout = io.TextIOWrapper(
        # Unbuffered where Python was started with -u.
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def silence_output() -> None:
    """Keep Python from reporting again that standard output cannot be flushed."""
    if sys.stdout is None:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
