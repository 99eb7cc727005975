"""The small files of a model: which ones travel with the weights, and which never do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CARRIED_FILES", "SideFiles", "sort_side_files"]

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


def sort_side_files(folder: Path, weights: set[str]) -> SideFiles:
    """Tell which files of a folder travel with its weights.

    Args:
        folder: A checkpoint's folder, or a delta's.
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
