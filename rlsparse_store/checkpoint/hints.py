"""Where a base may be found again: read off the Hub cache's folder names, never asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BaseHints", "hints_from_path"]

_REPO: Final = re.compile(r"models--([A-Za-z0-9][\w.-]{0,95})--([A-Za-z0-9][\w.-]{0,95})", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class BaseHints:
    """A repository on the Hub and a commit of it."""

    repo: str
    revision: str


def hints_from_path(path: Path) -> BaseHints | None:
    """Name the repository if ``path`` is a snapshot folder of the Hub's cache.

    Only the repository and the commit are taken; a local path is never recorded.

    Example:
        >>> from pathlib import Path
        >>> hub = Path("/x/models--org--name/snapshots") / ("0" * 40)
        >>> hints_from_path(hub).repo
        'org/name'
    """
    parts = path.parts
    for repo, middle, commit in zip(parts, parts[1:], parts[2:], strict=False):
        found = _REPO.fullmatch(repo)
        if found and middle == "snapshots" and _COMMIT.fullmatch(commit):
            return BaseHints(f"{found[1]}/{found[2]}", commit)
    return None
