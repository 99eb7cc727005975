"""Small tensors, of which many are encoded or decoded together.

A small tensor is at most one leaf long, so it has one leaf hash and is one chunk, if any. The work
on it takes less time than the calls that a larger tensor needs. So neighbours in a file are read
together, and the kernels take many tensors in one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rlsparse_store.format.digests import LEAF_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef

__all__ = ["SMALL_BYTES", "read_tensors"]

SMALL_BYTES: Final = LEAF_BYTES
"""Maximum bytes of a small tensor."""


def read_tensors(
    checkpoint: Checkpoint, tensors: Sequence[TensorRef], out: NDArray[np.uint8]
) -> None:
    """Read whole tensors, one after the other, and neighbours in a file in one call.

    Args:
        checkpoint: Their checkpoint.
        tensors: The tensors.
        out: Memory for their bytes.

    Raises:
        RlsparseError: A file was cut short or cannot be read.
    """
    start = stop = 0
    first = tensors[0]
    file, end = first.file, first.offset
    for tensor in tensors:
        if tensor.offset != end or tensor.file != file:
            checkpoint.read_into(first, 0, out[start:stop])
            first, start, file, end = tensor, stop, tensor.file, tensor.offset
        end += tensor.nbytes
        stop += tensor.nbytes
    checkpoint.read_into(first, 0, out[start:stop])
