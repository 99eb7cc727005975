"""The small files of a model: which ones travel with the weights, and which never do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.hub_cache import cached_files
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CARRIED_FILES", "SideFiles", "delta_side_files", "select_side_files"]

# An allow-list: what is not named here is skipped and listed, and a pickle can never slip in.
CARRIED_FILES: Final = (
    "config.json",
    "generation_config.json",
    "*tokenizer*.json",
    "*.tiktoken",
    "*.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "*processing_*.py",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Patterns of the small files that travel with the weights."""

_FOLDERS: Final = ("additional_chat_templates", "1_Pooling")
LARGEST: Final = 256 << 20
"""Bytes: nothing larger is a small file."""


@dataclass(frozen=True, slots=True)
class SideFiles:
    """The files of a folder beside its weights, as relative paths.

    Attributes:
        carried: Those that travel with the weights.
        skipped: Those that do not.
    """

    carried: list[str]
    skipped: list[str]


def _listed(folder: Path) -> list[str]:
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name in _FOLDERS and entry.is_dir():
            found += [f"{entry.name}/{inner.name}" for inner in sorted(entry.iterdir())]
        else:
            found.append(entry.name + ("/" if entry.is_dir() else ""))
    return found


def select_side_files(folder: Path, weights: set[str]) -> SideFiles:
    """Tell which files of a checkpoint's folder travel with its weights.

    Links are followed wherever they lead: the folder is the user's own, and checkpoints of one
    model often share a ``config.json`` that way.

    Args:
        folder: The folder.
        weights: Names of its weight files and their index, which are neither.
    """
    carried, skipped = [], []
    for name in _listed(folder):
        if name in weights or name.startswith("."):
            continue
        path = folder / name
        wanted = any(fnmatchcase(name, pattern) for pattern in CARRIED_FILES)
        if wanted and path.is_file() and path.stat().st_size <= LARGEST:
            carried.append(name)
        else:
            skipped.append(name)
    return SideFiles(carried, skipped)


def delta_side_files(folder: Path, weights: set[str]) -> list[str]:
    """The files of a delta's folder that travel with it.

    The folder may be a stranger's, and whoever copies or publishes what a link in it leads to
    gives away any file of the user: ``config.json -> ~/.netrc``. Links are followed only where
    the Hub's client makes them, from a snapshot in its cache to the files of that repository.

    Args:
        folder: The folder.
        weights: Names of files that do not count.

    Raises:
        CheckpointError: One is another link.
    """
    carried = select_side_files(folder, weights).carried
    inside = folder.resolve()
    cached = cached_files(inside)
    for name in carried:
        found = (folder / name).resolve()
        if found != inside / name and found.parent != cached:
            msg = "is a link, not followed in a delta: remove it or put a copy in its place"
            raise CheckpointError(msg, file=printable(str(folder / name)))
    return carried
