"""Which checkpoints were stored already, so that a pruned entry is not stored again.

It is kept in the run, as ``.run/watch/seen.json``. Without it, checkpoints are compared with the
run's entries by name and time, as :func:`rlsparse_store.encode_run` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import xxhash

from rlsparse_store.format.strict_json import StrictJsonError, canonical, parse

if TYPE_CHECKING:
    from rlsparse_store.delta.run_place import WatcherState
    from rlsparse_store.watch.completeness import Listing

__all__ = ["SeenCheckpoints"]

_LARGEST: Final = 64 << 20


class SeenCheckpoints:
    """The checkpoints that were stored, by name, and a hash of what their weight files were.

    Args:
        state: Where they are kept.
    """

    def __init__(self, state: WatcherState) -> None:
        self._state = state
        self._hashes = _parsed(state.read(_LARGEST))

    def has(self, name: str, listing: Listing) -> bool:
        """Whether a checkpoint with these weight files was stored."""
        return self._hashes.get(name) == _hash(listing)

    def knows(self, name: str) -> bool:
        """Whether a checkpoint of this name was stored, whatever its files were."""
        return name in self._hashes

    def add(self, name: str, listing: Listing) -> None:
        """Remember a checkpoint.

        Raises:
            OutputError: It cannot be written.
        """
        self._hashes[name] = _hash(listing)
        self._state.write(canonical(self._hashes) + b"\n")


def _hash(listing: Listing) -> str:
    weights = sorted(listing.weights.items())
    text = canonical([[name, stamp.nbytes, stamp.modified] for name, stamp in weights])
    return xxhash.xxh3_128_hexdigest(text)


def _parsed(text: bytes | None) -> dict[str, str]:
    """The hashes in a text; none in a damaged one, which only saves work."""
    try:
        held = parse(text or b"{}", most_objects=1)
    except StrictJsonError:
        return {}
    is_whole = isinstance(held, dict) and all(isinstance(value, str) for value in held.values())
    return held if is_whole else {}
