"""Hashes of bases that this process has encoded against, kept for its next deltas."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rlsparse_store.pipeline.fingerprints import BaseHashes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlsparse_store.files.checkpoint import Checkpoint

__all__ = ["KeptHashes", "kept_hashes"]

MOST_BASES: Final = 2
"""Bases whose hashes are kept: 8 bytes per 16 KiB of the slabs that this process holds."""


@dataclass(slots=True)
class KeptHashes:
    """Hashes of a base, in a process that encodes slabs of tensors.

    Attributes:
        tensors: Those of whole tensors, in the process that writes the index.
        slabs: Leaf hashes of base slabs by source name, first byte in the file and length.
    """

    tensors: BaseHashes = field(default_factory=BaseHashes)
    slabs: dict[tuple[str, int, int], NDArray[np.uint64]] = field(default_factory=dict)


_KEPT: Final[OrderedDict[object, KeptHashes]] = OrderedDict()

_LOCK: Final = threading.Lock()


def kept_hashes(base: Checkpoint) -> KeptHashes:
    """Return the hashes of a base on disk that earlier calls of this process have filled."""
    states = [(file.source.path, file.source.path.stat()) for file in base.files]
    key = tuple(
        (str(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        for path, state in states
    )
    with _LOCK:
        kept = _KEPT.setdefault(key, KeptHashes())
        _KEPT.move_to_end(key)
        while len(_KEPT) > MOST_BASES:
            _KEPT.popitem(last=False)
    return kept
