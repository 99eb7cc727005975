"""Writing a checkpoint's files: headers first, then tensors in any order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Self

from rlsparse_store.files.output import OutputFile, close_all

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rlsparse_store.format.header import HeaderEntry

__all__ = ["CheckpointWriter"]


PIECE_BYTES: Final = 1 << 18
"""Bytes of small tensors to write in one call, at least."""

SMALL_WRITE: Final = 1 << 16
"""Bytes from which a write is worth a call of its own."""


class _File:
    """A file, and adjacent bytes that were too few to be written."""

    def __init__(self, output: OutputFile) -> None:
        self.output = output
        self._adding = threading.Lock()
        self._start = 0
        self._pending = bytearray()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes at an offset, or keep few bytes until there are more."""
        if len(data) >= SMALL_WRITE:
            self.output.write(data, offset)
            return
        with self._adding:
            if offset != self._start + len(self._pending):
                self._write_pending()
                self._start = offset
            self._pending += data
            if len(self._pending) >= PIECE_BYTES:
                self._write_pending()

    def write_pending(self) -> None:
        """Write what was kept."""
        with self._adding:
            self._write_pending()

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self.output.write(memoryview(pending), self._start)
        self._start += len(pending)


class CheckpointWriter:
    """Writes safetensors files of known headers into a folder.

    Args:
        folder: Where; its files must not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[_File] = []
        self._places: dict[str, tuple[_File, int]] = {}

    def add_file(self, name: str, framed_header: bytes, entries: list[HeaderEntry]) -> None:
        """Create a file and reserve the places of its tensors.

        Raises:
            OutputError: It cannot be written.
        """
        file = _File(OutputFile(self._folder / name))
        self._files.append(file)
        file.write(framed_header, 0)
        for entry in entries:
            self._places[entry.name] = (file, len(framed_header) + entry.start)

    def write(self, tensor: str, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of a tensor at byte ``offset`` of its data. May be called on any thread.

        Few bytes may be written later, together with others, so an error may be that of an earlier
        call.

        Raises:
            OutputError: They cannot be written.
        """
        file, place = self._places[tensor]
        file.write(data, place + offset)

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close every file; after an error only close."""
        failed = error is not None
        try:
            if not failed:
                for file in self._files:
                    file.write_pending()
        except BaseException:
            failed = True
            raise
        finally:
            close_all([file.output for file in self._files], failed=failed)
