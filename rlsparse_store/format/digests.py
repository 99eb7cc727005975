"""Digests of content and checks of chunks (``specs/format.md`` section 11).

A byte string is hashed leaf by leaf, so that threads, devices and slices can each do their part.
These detect accidents, not forgery.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlsparse_store.format.dtypes import Dtype

__all__ = [
    "DIGEST_BYTES",
    "LEAF_BYTES",
    "Buffer",
    "HashLeaves",
    "TensorDigester",
    "TensorIdentity",
    "bytes_check",
    "checksum",
    "digest_of_leaves",
    "leaf_hashes",
    "leaves_check",
    "state_digest",
]

Buffer = bytes | bytearray | memoryview

HashLeaves = Callable[[NDArray[np.uint8]], NDArray[np.uint64]]
"""Hashes each leaf of a byte string, as :func:`leaf_hashes` does."""

LEAF_BYTES: Final = 16384
"""Bytes of a leaf."""

DIGEST_BYTES: Final = 16
"""Bytes of a tensor digest."""

_TENSOR_PREFIX: Final = b"rlsparse-tensor-1"

_NO_BYTES: Final = np.zeros(0, np.uint8)


def leaf_hashes(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash each leaf of a byte string.

    Args:
        data: One-dimensional, contiguous bytes.

    Returns:
        One 64-bit hash per leaf; none for an empty string.
    """
    view = data.data
    return np.fromiter(
        (
            xxh3_64_intdigest(view[start : start + LEAF_BYTES])
            for start in range(0, len(view), LEAF_BYTES)
        ),
        dtype=np.uint64,
        count=-(-len(view) // LEAF_BYTES),
    )


def leaves_check(leaves: NDArray[np.uint64]) -> int:
    """The check of words whose bytes have these leaf hashes: 32 bits."""
    return xxh3_64_intdigest(leaves.tobytes()) & 0xFFFFFFFF


def bytes_check(stored: Buffer) -> int:
    """The check of a chunk's stored bytes: 32 bits."""
    return xxh3_64_intdigest(stored) & 0xFFFFFFFF


def checksum(*parts: Buffer) -> int:
    """The 64-bit checksum of the concatenation of ``parts``."""
    return xxh3_64_intdigest(b"".join(parts))


def digest_of_leaves(nbytes: int, leaves: NDArray[np.uint64]) -> bytes:
    """The 16 bytes of the digest of a tensor of ``nbytes`` bytes, from all of its leaf hashes."""
    # The machine is little-endian (rlsparse_store/format/words.py).
    content = _TENSOR_PREFIX + nbytes.to_bytes(8, "little") + leaves.tobytes()
    return sha256(content).digest()[:DIGEST_BYTES]


class TensorDigester:
    """Builds the digest of one tensor from its data, in order.

    Args:
        nbytes: Bytes of the tensor's data.
        hash_leaves: Hashes leaves, as :func:`leaf_hashes` does.
    """

    __slots__ = ("_carry", "_hash", "_hash_leaves")

    def __init__(self, nbytes: int, hash_leaves: HashLeaves = leaf_hashes) -> None:
        self._hash = sha256(_TENSOR_PREFIX + struct.pack("<Q", nbytes))
        self._hash_leaves = hash_leaves
        self._carry = _NO_BYTES

    def add_leaves(self, leaves: NDArray[np.uint64]) -> None:
        """Add the hashes of the next leaves."""
        self._hash.update(leaves.tobytes())

    def add(self, data: NDArray[np.uint8]) -> None:
        """Add the next bytes, in pieces of any size."""
        if self._carry.size:
            missing = LEAF_BYTES - self._carry.size
            self._carry = np.concatenate([self._carry, data[:missing]])
            data = data[missing:]
            if self._carry.size < LEAF_BYTES:
                return
            self.add_leaves(self._hash_leaves(self._carry))
        full = data.size // LEAF_BYTES * LEAF_BYTES
        self.add_leaves(self._hash_leaves(data[:full]))
        self._carry = data[full:].copy()

    def digest(self) -> bytes:
        """The 16 bytes of the digest. Nothing may be added afterwards."""
        if self._carry.size:
            self.add_leaves(self._hash_leaves(self._carry))
            self._carry = _NO_BYTES
        return self._hash.digest()[:DIGEST_BYTES]


class TensorIdentity(NamedTuple):
    """What a state digest says of one tensor."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    digest: bytes


def _described(dtype: Dtype, shape: tuple[int, ...]) -> bytes:
    """Dtype and dimensions, as a state digest takes them."""
    code = dtype.code.encode()
    return bytes([len(code)]) + code + struct.pack(f"<B{len(shape)}Q", len(shape), *shape)


def state_digest(tensors: Iterable[TensorIdentity]) -> str:
    """Identify a checkpoint by its content, whatever its files are called.

    Args:
        tensors: All of its tensors, in any order.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> state_digest([])[:8]
        '21c72a8b'
    """
    parts = [b"rlsparse-state-1"]
    described: dict[tuple[int, tuple[int, ...]], bytes] = {}
    for text, dtype, shape, digest in sorted(
        [(t.name.encode(), t.dtype, t.shape, t.digest) for t in tensors], key=itemgetter(0)
    ):
        kind = described.get((dtype.number, shape))
        if kind is None:
            kind = described[dtype.number, shape] = _described(dtype, shape)
        parts += (len(text).to_bytes(4, "little"), text, kind, digest)
    return sha256(b"".join(parts)).hexdigest()
