"""Reading by position: the interface, and files, each through one descriptor that stays open."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import CheckpointError, NotFoundError, RlsparseError
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.format.header import HeaderError, HeaderLimitError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["LFS_POINTER", "POINTER_REMEDY", "FileSource", "Source"]


_FRONT: Final = 64
"""Bytes by which other formats are recognized."""

_AGAIN: Final = "save, copy or download it again"

LFS_POINTER: Final = b"version https://git-lfs.github.com/"
"""The first bytes of a git-lfs pointer."""

POINTER_REMEDY: Final = (
    "is a git-lfs pointer, not the file itself: run git lfs pull in its repository, or fetch it "
    "with hf download"
)


def _recognized(front: bytes) -> str:
    """The format of a file that is not safetensors; empty if it is unknown."""
    if front.startswith(LFS_POINTER):
        return POINTER_REMEDY
    if front.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "is a pickled PyTorch file, not safetensors, and is never read; save it again"
    if front.startswith(b"GGUF"):
        return "is a GGUF file, not safetensors; give the safetensors checkpoint"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in front):
        return (
            "is text, not a safetensors file, perhaps an error page that was saved under its "
            "name; download it again"
        )
    return ""


class Source(Closeable):
    """Bytes that are read by position.

    Attributes:
        path: Their name in errors.
    """

    path: Path

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Their number."""

    @abstractmethod
    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            RlsparseError: They end early or cannot be read.
        """

    def read(self, offset: int, nbytes: int) -> bytes:
        """The ``nbytes`` bytes from ``offset`` on; the caller knows that they exist.

        Raises:
            RlsparseError: They end early or cannot be read.
        """
        out = np.empty(nbytes, np.uint8)
        self.read_into(out, offset)
        return out.tobytes()

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch ranges that will be read, where reading them one by one would be slow.

        Args:
            ranges: First byte and the byte after the last one of each.

        Raises:
            RlsparseError: They cannot be fetched.
        """

    def check_unchanged(self) -> None:
        """Require that the bytes have not changed since they were opened.

        Raises:
            RlsparseError: They have.
        """

    def read_header(self, most: int) -> bytes:
        """The JSON header of a safetensors file with its padding.

        Args:
            most: The longest header to accept, in bytes.

        Raises:
            HeaderLimitError: It is longer.
            HeaderError: The file is too short for it.
            RlsparseError: It cannot be read.
        """
        if self.nbytes < 8:
            msg = f"only {self.nbytes} bytes long, too short for a safetensors file; {_AGAIN}"
            raise HeaderError(msg)
        (length,) = struct.unpack("<Q", self.read(0, 8))
        if length > most:
            other = _recognized(self.read(0, min(self.nbytes, _FRONT)))
            if other:
                raise HeaderError(other)
            msg = (
                f"announces a header of {length} bytes; at most {most} are accepted: it is damaged "
                f"or not a safetensors file; {_AGAIN}"
            )
            raise HeaderLimitError(msg)
        if length == 0:
            msg = f"begins with zeros, so it was not written to its end; {_AGAIN}"
            raise HeaderError(msg)
        if length > self.nbytes - 8:
            msg = (
                f"announces a header of {length} bytes but is only {self.nbytes} long: it was cut "
                f"short; {_AGAIN}"
            )
            raise HeaderError(msg)
        return self.read(8, length)


class FileSource(Source):
    """A regular file, read by position.

    A file that shrinks kills a process that reads it through a mapping; reading by position raises
    an error instead. One descriptor means one version of the file.

    Args:
        path: The file. Links are followed: the Hub's cache is made of them.

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: It is not a regular file or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without O_NONBLOCK, opening a pipe waits for a writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags)
        except FileNotFoundError as error:
            msg = "no such file"
            if path.is_symlink():
                msg = "is a link to a file that is gone; copy or download it again"
            raise NotFoundError(msg, file=path) from error
        except OSError as error:
            msg = f"cannot be opened ({error.strerror})"
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                msg += "; all files of a checkpoint are open at once: raise the limit (ulimit -n)"
            raise CheckpointError(msg, file=path) from error
        self._opened = os.fstat(self._descriptor)
        if not stat.S_ISREG(self._opened.st_mode):
            os.close(self._descriptor)
            msg = "not a regular file"
            raise CheckpointError(msg, file=path)

    @property
    def nbytes(self) -> int:
        """Length of the file when it was opened."""
        return self._opened.st_size

    @property
    def version(self) -> tuple[int, ...]:
        """Device, inode, size and modification time: other ones once the file is replaced."""
        opened = self._opened
        return opened.st_dev, opened.st_ino, opened.st_size, opened.st_mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        """The ``nbytes`` bytes from ``offset`` on.

        Raises:
            RlsparseError: The file ends early or cannot be read.
        """
        try:
            # One call and no copy, in nearly all cases.
            data = os.pread(self._descriptor, nbytes, offset)
        except OSError:
            data = b""
        return data if len(data) == nbytes else super().read(offset, nbytes)

    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            RlsparseError: The file ends early or cannot be read.
        """
        view = out.data
        while view:
            try:
                got = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                reason = error.strerror if self._descriptor >= 0 else "it was closed"
                msg = f"cannot be read ({reason})"
                raise RlsparseError(msg, file=self.path) from error
            if got == 0:
                msg = f"ends at byte {offset}: it was cut short while being read"
                raise RlsparseError(msg, file=self.path)
            view = view[got:]
            offset += got

    def map_into_memory(self) -> NDArray[np.uint8]:
        """All of the file as memory; who writes to it writes to a copy.

        The file itself is never written to. Reading a page after the file was cut short kills the
        process, so this library itself reads by position.

        Raises:
            RlsparseError: The file cannot be mapped.
        """
        try:
            mapped = mmap.mmap(self._descriptor, self.nbytes, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            msg = f"cannot be mapped into memory ({error})"
            raise RlsparseError(msg, file=self.path) from error
        return np.frombuffer(mapped, np.uint8)

    def check_not_cut(self) -> None:
        """Require that the file is still as long as when it was opened.

        Raises:
            RlsparseError: It was cut short, or cannot be read.
        """
        try:
            now = os.fstat(self._descriptor)
        except OSError as error:
            msg = f"cannot be read ({error.strerror})"
            raise RlsparseError(msg, file=self.path) from error
        if now.st_size < self.nbytes:
            msg = f"was cut short: it had {self.nbytes} bytes when it was opened"
            raise RlsparseError(msg, file=self.path)

    def check_unchanged(self) -> None:
        """Require that the file is the one that was opened.

        Raises:
            RlsparseError: It was written to in the meantime.
        """
        now = os.fstat(self._descriptor)
        before = self._opened
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            msg = "was changed while it was being read; run again when nothing writes to it"
            raise RlsparseError(msg, file=self.path)

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
