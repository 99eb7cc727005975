"""Where the files of a delta lie (``specs/format.md`` section 7)."""

from __future__ import annotations

from typing import Final

__all__ = [
    "DELTA_FOLDER",
    "INDEX_FILE",
    "SINGLE_FILE",
    "entry_name",
    "folder_of_delta",
    "shard_name",
]

DELTA_FOLDER: Final = "rlsparse"
SINGLE_FILE: Final = "delta.safetensors"
INDEX_FILE: Final = "delta.safetensors.index.json"


def shard_name(number: int, shards: int) -> str:
    """File name of shard ``number``, from 1, of ``shards``."""
    return SINGLE_FILE if shards == 1 else f"delta-{number:05}-of-{shards:05}.safetensors"


def entry_name(number: int) -> str:
    """Name of the data entry of shard ``number``, from 1."""
    return f"data.{number:05}"


def folder_of_delta(path: str) -> str | None:
    """The folder of the delta that a file is stored for, by the file's path with slashes.

    Returns:
        The folder above ``rlsparse/``, empty for the top; ``None`` for a file of no delta.

    Example:
        >>> folder_of_delta("step-1/rlsparse/delta.safetensors"), folder_of_delta("config.json")
        ('step-1', None)
    """
    # With a slash in front: another folder's name may end in the same letters.
    folder, inside, _ = f"/{path}".partition(f"/{DELTA_FOLDER}/")
    return folder[1:] if inside else None
