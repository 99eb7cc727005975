"""Slabs: the parts of a tensor that several processes hold, encoded where they are.

A slab is a run of consecutive elements. It is encoded as a tensor of its own, against the same
elements of the source: the chunks of all slabs together are chunks of the tensor. Digests are trees
over leaves of 16 KiB. Whole leaves are hashed where their bytes are; a leaf that two slabs share is
hashed where the slabs' edges come together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlsparse_store.errors import CheckpointError
from rlsparse_store.format.digests import LEAF_BYTES, HashLeaves, TensorDigester
from rlsparse_store.format.names import printable
from rlsparse_store.format.words import cast_to_bf16
from rlsparse_store.pipeline.tensor_matching import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.pipeline.tensor_matching import TensorPlan

    Read = Callable[[int, int], NDArray[np.uint8]]

__all__ = ["LeafRun", "hash_run", "join_runs", "read_stored", "slab_plan"]


class LeafRun(NamedTuple):
    """A run of a tensor's bytes, with the hashes of the leaves that are wholly within it.

    Attributes:
        start: Its first byte in the tensor.
        nbytes: Its length.
        head: The bytes before its first whole leaf; all bytes if it has none.
        leaves: Hashes of the whole leaves.
        tail: The bytes after its last whole leaf.
    """

    start: int
    nbytes: int
    head: bytes
    leaves: NDArray[np.uint64]
    tail: bytes

    @property
    def stop(self) -> int:
        """The byte after the last one."""
        return self.start + self.nbytes

    def with_edges(self, read: Read) -> LeafRun:
        """Return the run with head and tail.

        Args:
            read: Reads a number of bytes from a byte of the tensor on.
        """
        head, tail = _edges(self.start, self.nbytes)
        return self._replace(
            head=read(self.start, head).tobytes(), tail=read(self.stop - tail, tail).tobytes()
        )


def _edges(start: int, nbytes: int) -> tuple[int, int]:
    """Return the lengths of head and tail of a run."""
    head = min(nbytes, -start % LEAF_BYTES)
    return head, (nbytes - head) % LEAF_BYTES


def hash_run(
    start: int, nbytes: int, read: Read, hash_leaves: HashLeaves, known: NDArray[np.uint64]
) -> LeafRun:
    """Hash the whole leaves of a run, whose edges stay empty: see :meth:`LeafRun.with_edges`.

    Args:
        start: Its first byte in the tensor.
        nbytes: Its length.
        read: Reads a number of bytes from a byte of the tensor on.
        hash_leaves: Hashes leaves.
        known: Hashes of the leaves of the run's own bytes, which are the tensor's if the run
            starts with a leaf. Otherwise the bytes are read.
    """
    head, tail = _edges(start, nbytes)
    if head == 0:
        return LeafRun(start, nbytes, b"", known[: nbytes // LEAF_BYTES], b"")
    stop = start + nbytes - tail
    leaves = [
        hash_leaves(read(place, min(PIECE_BYTES, stop - place)))
        for place in range(start + head, stop, PIECE_BYTES)
    ]
    return LeafRun(start, nbytes, b"", np.concatenate([*leaves, np.zeros(0, np.uint64)]), b"")


def join_runs(name: str, nbytes: int, runs: Iterable[LeafRun], hash_leaves: HashLeaves) -> bytes:
    """Return the digest of a tensor.

    Args:
        name: The tensor, for errors.
        nbytes: Its length.
        runs: Runs with their edges, in any order.
        hash_leaves: Hashes the leaves that runs share.

    Raises:
        CheckpointError: The runs overlap, or leave a gap.
    """
    digester = TensorDigester(nbytes, hash_leaves)
    place = 0
    for run in sorted(runs, key=lambda run: run.start):
        if run.start != place:
            what = "twice" if run.start < place else "by none"
            msg = f"bytes from {min(run.start, place)} on are held {what} of the ranks"
            raise CheckpointError(msg, tensor=printable(name))
        digester.add(np.frombuffer(run.head, np.uint8))
        digester.add_leaves(run.leaves)
        digester.add(np.frombuffer(run.tail, np.uint8))
        place = run.stop
    if place != nbytes:
        msg = f"{place} of its {nbytes} bytes are held by the ranks: every part must be saved"
        raise CheckpointError(msg, tensor=printable(name))
    return digester.digest()


def slab_plan(plan: TensorPlan, held: TensorRef, start: int) -> TensorPlan:
    """Return the plan of a slab, as of a tensor of its own.

    Args:
        plan: The plan of the tensor.
        held: The slab.
        start: Its first byte in the tensor, before a cast.
    """
    scale = 2 if plan.is_cast or plan.widening else 1
    first, nbytes = start // scale, held.nbytes // scale
    shared = max(0, min(plan.shared_bytes - first, nbytes))
    source = None
    if plan.source is not None and shared:
        elements = shared * 8 // plan.source.dtype.bits
        source = plan.source._replace(
            shape=(elements,), offset=plan.source.offset + first, nbytes=shared
        )
    return plan._replace(tuned=held, source=source, shared_bytes=shared)


def read_stored(tuned: Checkpoint, plan: TensorPlan, start: int, nbytes: int) -> NDArray[np.uint8]:
    """Read bytes of a tuned tensor as the delta stores it, after a cast."""
    if not plan.is_cast:
        return tuned.read(plan.tuned, start, nbytes)
    wide = tuned.read(plan.tuned, 2 * start, 2 * nbytes)
    return cast_to_bf16(wide.view(np.uint32)).view(np.uint8)
