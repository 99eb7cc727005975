"""Names from files: which ones are accepted, and how they are shown."""

from __future__ import annotations

import re
from typing import Final

from rlsparse_store.format.limits import MAX_NAME_BYTES

__all__ = ["are_tensor_names", "is_block_name", "is_file_name", "printable"]

# Control characters, surrogates and the marks that reverse text on a terminal.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
# What a terminal shows as nothing, or as a line of its own, besides.
_UNSEEN: Final = re.compile(_UNSAFE.pattern[:-1] + "\u061c\u200b-\u200f\u2028\u2029\ufeff]")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,180}")
# Features and optional blocks.
_BLOCK_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}")
# Names that Windows gives to devices, with any suffix.
_DEVICES: Final = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def are_tensor_names(names: list[str]) -> bool:
    """Whether all of these are tensor names that the format allows; fast for many."""
    if _UNSAFE.search("".join(names)) or not all(names) or "__metadata__" in names:
        return False
    return all(len(name.encode()) <= MAX_NAME_BYTES for name in names)


def is_block_name(name: str) -> bool:
    """Whether this can be the name of a feature or an optional block.

    Example:
        >>> is_block_name("example.org/predictor"), is_block_name("Predictor")
        (True, False)
    """
    return _BLOCK_NAME.fullmatch(name) is not None


def is_file_name(name: str) -> bool:
    """Whether this is one plain component of a path on every system."""
    return (
        _FILE_NAME.fullmatch(name) is not None
        and not name.endswith(".")
        and _DEVICES.fullmatch(name) is None
    )


def printable(text: str, most: int = 160) -> str:
    """Text from a stranger, safe for a terminal: unsafe characters escaped, length capped."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
