"""Writing a checkpoint's files: headers first, then tensors in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rlsparse_store.files.output import OutputFile, close_all

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rlsparse_store.format.header import HeaderEntry

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes safetensors files of known headers into a folder.

    Args:
        folder: Where; its files must not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[OutputFile] = []
        self._places: dict[str, tuple[OutputFile, int]] = {}

    def add_file(self, name: str, framed_header: bytes, entries: list[HeaderEntry]) -> None:
        """Create a file and reserve the places of its tensors.

        Raises:
            OutputError: It cannot be written.
        """
        file = OutputFile(self._folder / name)
        self._files.append(file)
        file.write(framed_header, 0)
        for entry in entries:
            self._places[entry.name] = (file, len(framed_header) + entry.start)

    def write(self, tensor: str, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of a tensor at byte ``offset`` of its data.

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
        close_all(self._files, failed=error is not None)
