"""Tensors in memory as a checkpoint of one file, as if they had been saved."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from rlsparse_store.files.checkpoint import Checkpoint, CheckpointFile, TensorRef
from rlsparse_store.files.checkpoint_layout import BY_DTYPE, FileLayout, TensorShape, rebuild_header
from rlsparse_store.files.source import Source
from rlsparse_store.format.header import HeaderEntry, parse_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rlsparse_store.format.dtypes import Dtype

__all__ = ["TensorBytes", "TensorsSource", "checkpoint_in_memory"]

FILE: Final = "model.safetensors"
METADATA: Final = b'{"format":"pt"}'
"""The metadata that transformers writes."""


class TensorBytes(Protocol):
    """A tensor in memory, of any kind."""

    @property
    def dtype(self) -> Dtype:
        """Its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, in elements."""

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        """Fill ``out`` with its bytes, row by row, from byte ``start`` on."""


class TensorsSource(Source):
    """The content of a safetensors file whose tensors are in memory.

    Attributes:
        tensors: The tensors.
    """

    def __init__(
        self, framed: bytes, entries: list[HeaderEntry], tensors: Mapping[str, TensorBytes]
    ) -> None:
        self.path = Path(FILE)
        self.tensors = tensors
        self._framed = np.frombuffer(framed, np.uint8)
        self._entries = [entry for entry in entries if entry.end > entry.start]
        self._starts = [entry.start for entry in self._entries]
        self._nbytes = len(framed) + max((entry.end for entry in entries), default=0)

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return self._nbytes

    def read_into(self, out: NDArray[np.uint8], offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on."""
        head = self._framed[offset : offset + out.size]
        out[: head.size] = head
        done = head.size
        while done < out.size:
            place = offset + done - self._framed.size
            entry = self._entries[bisect_right(self._starts, place) - 1]
            part = out[done : done + entry.end - place]
            self.tensors[entry.name].read_into(part, place - entry.start)
            done += part.size

    def close(self) -> None:
        """Nothing is open."""


def checkpoint_in_memory(
    tensors: Mapping[str, TensorBytes], path: Path | None = None
) -> Checkpoint:
    """The checkpoint of one file that ``safetensors`` would save these tensors as.

    Args:
        tensors: The tensors by name. They are read when the checkpoint is.
        path: Their origin, for errors.

    Raises:
        LayoutError: A tensor is no whole number of bytes.
    """
    shapes = [TensorShape(name, t.dtype, t.shape) for name, t in tensors.items()]
    framed, entries = rebuild_header(FileLayout(FILE, BY_DTYPE, METADATA), shapes)
    source = TensorsSource(framed, entries, tensors)
    parsed = parse_header(framed[8:], source.nbytes - len(framed))
    refs = {
        e.name: TensorRef(e.name, e.dtype, e.shape, 0, len(framed) + e.start, e.end - e.start)
        for e in sorted(entries, key=lambda e: e.name.encode())
    }
    return Checkpoint(
        path or Path(FILE), [CheckpointFile(FILE, source, framed[8:], parsed)], refs, None
    )
