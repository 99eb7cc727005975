"""Which checkpoints were stored already, so that a pruned entry is not stored again.

It is a file in the run, ``.run/watch/seen.json``. Without it, checkpoints are compared with the
run's entries by name and time, as :func:`rlsparse_store.encode_run` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import xxhash

from rlsparse_store.delta.run_files import private_folder
from rlsparse_store.files.output import replace_file
from rlsparse_store.format.strict_json import StrictJsonError, canonical, parse

if TYPE_CHECKING:
    from pathlib import Path

    from rlsparse_store.watch.completeness import Listing

__all__ = ["SeenCheckpoints", "watch_folder"]

_LARGEST: Final = 64 << 20


def watch_folder(run: Path) -> Path:
    """The folder of a run for its watcher."""
    return private_folder(run) / "watch"


class SeenCheckpoints:
    """The checkpoints that were stored, by name, and a hash of what their weight files were.

    Args:
        run: Folder of the run. Its watcher's folder exists.
    """

    def __init__(self, run: Path) -> None:
        self._path = watch_folder(run) / "seen.json"
        self._hashes = _read(self._path)

    def has(self, name: str, listing: Listing) -> bool:
        """Whether a checkpoint with these weight files was stored."""
        return self._hashes.get(name) == _hash(listing)

    def knows(self, name: str) -> bool:
        """Whether a checkpoint of this name was stored, whatever its files were."""
        return name in self._hashes

    def add(self, name: str, listing: Listing) -> None:
        """Remember a checkpoint.

        Raises:
            OutputError: The file cannot be written.
        """
        self._hashes[name] = _hash(listing)
        replace_file(self._path, canonical(self._hashes) + b"\n")


def _hash(listing: Listing) -> str:
    weights = sorted(listing.weights.items())
    text = canonical([[name, stamp.nbytes, stamp.modified] for name, stamp in weights])
    return xxhash.xxh3_128_hexdigest(text)


def _read(path: Path) -> dict[str, str]:
    """The content of the file; nothing of a damaged one, which only saves work."""
    try:
        with path.open("rb") as file:
            held = parse(file.read(_LARGEST), most_objects=1)
    except (FileNotFoundError, StrictJsonError):
        return {}
    is_whole = isinstance(held, dict) and all(isinstance(value, str) for value in held.values())
    return held if is_whole else {}
