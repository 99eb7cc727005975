"""The folder names of the Hub's cache: the repository and commit of a snapshot, and its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BaseHint", "base_hint_from_path", "cached_files"]

_REPO: Final = re.compile(r"models--([A-Za-z0-9][\w.-]{0,95})--([A-Za-z0-9][\w.-]{0,95})", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class BaseHint:
    """A repository on the Hub and a commit of it."""

    repo: str
    revision: str


def base_hint_from_path(path: Path) -> BaseHint | None:
    """The repository and commit, if ``path`` is a snapshot folder of the Hub's cache.

    A local path is never recorded.

    Example:
        >>> from pathlib import Path
        >>> hub = Path("/x/models--org--name/snapshots") / ("0" * 40)
        >>> base_hint_from_path(hub).repo
        'org/name'
    """
    parts = path.parts
    for repo, middle, commit in zip(parts, parts[1:], parts[2:], strict=False):
        found = _REPO.fullmatch(repo)
        if found and middle == "snapshots" and _COMMIT.fullmatch(commit):
            return BaseHint(f"{found[1]}/{found[2]}", commit)
    return None


def cached_files(path: Path) -> Path | None:
    """The folder with the files of a repository, if ``path`` is in a snapshot of the Hub's cache.

    Files in a snapshot are links to it.

    Example:
        >>> from pathlib import Path
        >>> hub = Path("/x/models--org--name/snapshots") / ("0" * 40)
        >>> str(cached_files(hub / "step-1"))
        '/x/models--org--name/blobs'
    """
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
            return folder.parent.parent / "blobs"
    return None
