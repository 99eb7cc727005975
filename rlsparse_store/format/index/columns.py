"""The fields of an index: integer columns, name lists, texts and digests (section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rlsparse_store.errors import IndexFormatError, LimitError
from rlsparse_store.format.digests import DIGEST_BYTES
from rlsparse_store.format.limits import MAX_NAMES_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ColumnReader", "ColumnWriter"]

_WIDTHS: Final = (0, 1, 2, 4, 8)


def _width_of(largest: int) -> int:
    return next(width for width in _WIDTHS if largest < 1 << (8 * width))


class ColumnWriter:
    """Builds the content of an index, field by field."""

    def __init__(self) -> None:
        self._fields: list[bytes] = []

    def integers(self, values: Sequence[int] | NDArray[np.uint64]) -> None:
        """Add an integer column."""
        column = np.asarray(values, dtype="<u8")
        width = _width_of(int(column.max())) if column.size else 0
        planes = column.view(np.uint8).reshape(column.size, 8)[:, :width]
        self._fields += [bytes([width]), planes.T.tobytes()]

    def names(self, names: Sequence[str]) -> None:
        """Add a name list."""
        prefixes, suffixes, before = [], [], b""
        for name in map(str.encode, names):
            shared = _common_prefix(before, name)
            prefixes.append(shared)
            suffixes.append(name[shared:])
            before = name
        self.integers(prefixes)
        self.integers([len(suffix) for suffix in suffixes])
        self._fields.append(b"".join(suffixes))

    def text(self, text: bytes) -> None:
        """Add a text."""
        self.integers([len(text)])
        self._fields.append(text)

    def digests(self, digests: Sequence[bytes]) -> None:
        """Add a digest column."""
        self._fields += digests

    def content(self) -> bytes:
        """All fields."""
        return b"".join(self._fields)


def _common_prefix(left: bytes, right: bytes) -> int:
    most = min(len(left), len(right))
    differing = int.from_bytes(left[:most], "big") ^ int.from_bytes(right[:most], "big")
    return most - -(-differing.bit_length() // 8)


class ColumnReader:
    """Reads the content of an index, field by field, never past the end.

    Args:
        content: The decompressed index.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def _take(self, nbytes: int) -> bytes:
        end = self._place + nbytes
        if end > len(self._content):
            msg = f"the index ends {end - len(self._content)} bytes early"
            raise IndexFormatError(msg)
        taken = self._content[self._place : end]
        self._place = end
        return taken

    def integers(self, count: int) -> NDArray[np.uint64]:
        """The next integer column.

        Raises:
            IndexFormatError: It is cut short, or wider than its values.
        """
        width = self._take(1)[0]
        if width not in _WIDTHS:
            msg = f"an integer column of width {width}"
            raise IndexFormatError(msg)
        planes = np.frombuffer(self._take(count * width), np.uint8).reshape(width, count)
        column = np.zeros((count, 8), np.uint8)
        column[:, :width] = planes.T
        values = column.view("<u8").ravel()
        if width != (_width_of(int(values.max())) if count else 0):
            msg = f"an integer column is wider ({width} bytes) than its values"
            raise IndexFormatError(msg)
        return values

    def numbers(self, count: int) -> list[int]:
        """The next integer column, not checked yet.

        Raises:
            IndexFormatError: It is broken.
        """
        plain: list[int] = self.integers(count).tolist()
        return plain

    def limited(self, count: int, most: int, what: str) -> list[int]:
        """The next integer column, whose values must not exceed a limit of the format.

        Raises:
            LimitError: One does.
            IndexFormatError: The column is broken.
        """
        values = self.integers(count)
        if count and int(values.max()) > most:
            msg = f"{what} of {int(values.max())}; at most {most} are accepted"
            raise LimitError(msg)
        plain: list[int] = values.tolist()
        return plain

    def names(self, count: int) -> list[str]:
        """The next name list, with every name at its full length.

        Raises:
            IndexFormatError: It is broken or not UTF-8.
            LimitError: The names are too long in all.
        """
        prefixes = self.integers(count)
        suffixes = self.integers(count)
        # In Python's integers: 64 bits would wrap.
        if sum(prefixes.tolist()) + sum(suffixes.tolist()) > MAX_NAMES_BYTES:
            msg = f"names of more than {MAX_NAMES_BYTES} bytes in all"
            raise LimitError(msg)
        names: list[str] = []
        before = b""
        for prefix, suffix in zip(prefixes.tolist(), suffixes.tolist(), strict=True):
            tail = self._take(suffix)
            if prefix > len(before) or (
                tail and prefix < len(before) and before[prefix] == tail[0]
            ):
                msg = f"a name shares {prefix} bytes with the {len(before)} of the one before"
                raise IndexFormatError(msg)
            before = before[:prefix] + tail
            try:
                names.append(before.decode())
            except UnicodeDecodeError as error:
                msg = "a name is not UTF-8"
                raise IndexFormatError(msg) from error
        return names

    def text(self) -> bytes:
        """The next text.

        Raises:
            IndexFormatError: It is cut short.
        """
        return self._take(int(self.integers(1)[0]))

    def digests(self, count: int) -> list[bytes]:
        """The next digest column.

        Raises:
            IndexFormatError: It is cut short.
        """
        taken = self._take(count * DIGEST_BYTES)
        return [taken[i : i + DIGEST_BYTES] for i in range(0, len(taken), DIGEST_BYTES)]

    def finish(self) -> None:
        """Require that everything was read.

        Raises:
            IndexFormatError: Bytes are left over.
        """
        if self._place != len(self._content):
            msg = f"{len(self._content) - self._place} bytes are left at the end of the index"
            raise IndexFormatError(msg)
