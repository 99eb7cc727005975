"""Whole tensors made in the memory of a device, by several threads."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

from rlsparse_store.container import Kind
from rlsparse_store.delta.pipeline import ordered_map
from rlsparse_store.delta.threads import resolve_threads

if TYPE_CHECKING:
    from rlsparse_store.container import TensorRecord
    from rlsparse_store.delta.cursor import Run, TensorCursor
    from rlsparse_store.frameworks import Bytes, Memory

__all__ = ["can_be_made_in", "make_in"]

MOST_THREADS: Final = 4
"""Chunks of a tensor decoded at a time: what each needs besides its words lies on the device."""


def can_be_made_in(memory: Memory, t: TensorRecord) -> bool:
    """Whether a tensor, which is no alias, can be decoded in a memory."""
    return t.kind is not Kind.DELTA or t.coding is None or memory.takes(t.coding.width)


def make_in(memory: Memory, t: TensorRecord, cursor: TensorCursor) -> Bytes | None:
    """Make all of a tensor in a device's memory.

    Its runs are read and decompressed on threads of the CPU; what is decompressed is expanded and
    applied on the device.

    Args:
        memory: The memory.
        t: The tensor, which can be made in it.
        cursor: Reads it, into that memory.

    Returns:
        Its bytes, or ``None``, with a warning, if the device has no memory left.

    Raises:
        FormatError: The delta is damaged, or the base is not the right one.
        RlsparseError: A file was cut short or cannot be read.
    """
    try:
        with memory.working():
            out = memory.empty(t.nbytes)

        def read(run: Run) -> None:
            with memory.working():
                cursor.read_into(run.start, out[run.start : run.stop])

        for _ in ordered_map(read, cursor.runs(), min(MOST_THREADS, resolve_threads(None))):
            pass
    except MemoryError:
        msg = f"no memory left on {memory.name}: a tensor is decoded on the CPU, more slowly"
        warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return None
    return out
