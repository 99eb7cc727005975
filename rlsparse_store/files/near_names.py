"""Paths that do not exist, and the existing ones that were probably meant."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Final

from rlsparse_store.format.names import printable

__all__ = ["did_you_mean", "in_home", "near_path"]

_LIKE: Final = 0.75
"""How alike two names are of which one may be a mistyped form of the other, from 0 to 1."""

_MOST: Final = 3
"""Names that a message lists."""


def near_path(place: str) -> Path | None:
    """The existing path that a relative one with a mistyped first part probably means.

    Example:
        >>> near_path("no-such-folder-anywhere/x")
    """
    first, _, rest = place.partition("/")
    if Path(first).exists():
        return None
    for name in _near(Path(), first):
        if rest and (Path(name) / rest.partition("@")[0]).exists():
            return Path(name, rest.partition("@")[0])
    return None


def did_you_mean(path: Path) -> str:
    """A question that names what a missing path may mean; empty if nothing there is like it."""
    if (home := in_home(path)) is not None and home.exists():
        return f"; did you mean {printable(str(home))}?"
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder, path = folder.parent, folder
    found = [printable(str(folder / name)) for name in _near(folder, path.name)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def in_home(path: Path) -> Path | None:
    """The path that a shell makes of one that begins with ``~``; ``None`` for another one.

    A shell leaves the sign as it is in quotes and after ``--option=``.
    """
    if not str(path).startswith("~") or Path(path.parts[0]).exists():
        return None
    try:
        return path.expanduser()
    except RuntimeError:
        return None


def _near(folder: Path, name: str) -> list[str]:
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    return get_close_matches(name, names, n=_MOST, cutoff=_LIKE)
