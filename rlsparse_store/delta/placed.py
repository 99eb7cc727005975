"""Whole tensors made in the memory of a device."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from rlsparse_store.container import Kind
from rlsparse_store.delta.threads import resolve_threads

if TYPE_CHECKING:
    from rlsparse_store.container import TensorRecord
    from rlsparse_store.delta.cursor import TensorCursor
    from rlsparse_store.frameworks import Bytes, Memory

__all__ = ["can_be_made_in", "make_in"]


def can_be_made_in(memory: Memory, t: TensorRecord) -> bool:
    """Whether a tensor, which is no alias, can be decoded in a memory."""
    return t.kind is not Kind.DELTA or t.coding is None or memory.takes(t.coding.width)


def make_in(memory: Memory, cursor: TensorCursor) -> Bytes | None:
    """Make all of a tensor in a device's memory.

    Args:
        memory: The memory.
        cursor: Makes it, in that memory.

    Returns:
        Its bytes, or ``None``, with a warning, if the device has no memory left.

    Raises:
        FormatError: The delta is damaged, or the base is not the right one.
        RlsparseError: A file was cut short or cannot be read.
    """
    try:
        return cursor.make(resolve_threads(None))
    except MemoryError:
        msg = f"no memory left on {memory.name}: a tensor is decoded on the CPU, more slowly"
        warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return None
