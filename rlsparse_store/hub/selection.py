"""Which files of a repository are fetched."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rlsparse_store.errors import NotFoundError
from rlsparse_store.files.foreign_formats import no_weights
from rlsparse_store.files.side_files import CARRIED_FILES
from rlsparse_store.files.weight_files import choose_weight_files
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from rlsparse_store.files.folder import Folder

__all__ = ["SIDES", "CheckpointSelection", "FileSelection", "Selection"]

SIDES: Final = (
    *CARRIED_FILES,
    *("*.py", "additional_chat_templates/*.jinja", "custom_generate/requirements.txt"),
    *(f"[0-9]*_*/*.{ending}" for ending in ("json", "txt", "model", "safetensors")),
)
"""Patterns of the small files of a checkpoint that travel with a delta of it: those at the top,
Python files, and those in the folders of modules, such as ``1_Pooling/config.json``."""


class Selection(Protocol):
    """The files of a repository to fetch."""

    @property
    def what(self) -> str:
        """What the files are, for errors: "base" or "delta"."""

    @property
    def is_checked(self) -> bool:
        """Whether to verify files that were cached before.

        New downloads are always verified, because the client does not.
        """

    def among(self, names: Collection[str], folder: Folder, place: Path) -> list[str]:
        """Return the selected names.

        Args:
            names: Paths of all files.
            folder: The files themselves.
            place: What the repository is called in errors.

        Raises:
            NotFoundError: None is selected.
            CheckpointError: They are no checkpoint.
        """


class FileSelection(NamedTuple):
    """Files by patterns.

    Attributes:
        what: What the files are, for errors.
        allow: Patterns of files to fetch.
        ignore: Patterns of files not to fetch; they override ``allow``.
        is_checked: Whether to verify files that were cached before.
    """

    what: str
    allow: Sequence[str]
    ignore: Sequence[str] = ()
    is_checked: bool = True

    def among(self, names: Collection[str], folder: Folder, place: Path) -> list[str]:
        """Return the names that match, as :class:`Selection` says."""
        del folder
        found = [
            name
            for name in names
            if any(fnmatchcase(name, pattern) for pattern in self.allow)
            and not any(fnmatchcase(name, pattern) for pattern in self.ignore)
        ]
        if not found:
            msg = f"the repository has no files of a {self.what}"
            raise NotFoundError(msg, file=printable(str(place)))
        return found


class CheckpointSelection(NamedTuple):
    """The weights that a folder's own loader reads, and small files.

    Attributes:
        what: What the checkpoint is, for errors.
        sides: Patterns of the small files to fetch besides the weights.
        is_checked: Whether to verify files that were cached before.
    """

    what: str
    sides: Sequence[str] = ()
    is_checked: bool = True

    def among(self, names: Collection[str], folder: Folder, place: Path) -> list[str]:
        """Return the names of weights and small files, as :class:`Selection` says."""
        weights = choose_weight_files(folder, place)
        if weights is None:
            remedy = (
                f"download one (hf download {printable(str(place))} --include 'FOLDER/*' "
                "--local-dir DIR) and give DIR/FOLDER"
            )
            raise no_weights(names, place, remedy)
        found = {*weights.names, *([weights.index_name] if weights.index_name else [])}
        return [*found, *(name for name in names if name not in found and self._is_side(name))]

    def _is_side(self, name: str) -> bool:
        return any(
            fnmatchcase(name, pattern)
            # A pattern's star also matches slashes.
            and (pattern == "*.py" or name.count("/") == pattern.count("/"))
            for pattern in self.sides
        )
