"""The small files of a model: which ones travel with the weights, and which never do."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.errors import CheckpointError, NotFoundError, RlsparseError
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.foreign_formats import PICKLED
from rlsparse_store.files.hub_cache import cached_files
from rlsparse_store.files.remote_code import LARGEST as LARGEST_MODULE
from rlsparse_store.files.remote_code import required_modules
from rlsparse_store.files.source import LFS_POINTER, FileSource
from rlsparse_store.files.weight_files import INDEX
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from rlsparse_store.files.checkpoint import Checkpoint

__all__ = [
    "CARD",
    "CARRIED_FILES",
    "NO_RESUME",
    "SIDE_FILES",
    "SideFiles",
    "delta_side_files",
    "holds_training_state",
    "open_side_files",
]

CARD: Final = "README.md"

# An allow-list: what is not named here is skipped and listed, and a pickle can never slip in.
CARRIED_FILES: Final = (
    "config.json",
    "generation_config.json",
    "*tokenizer*.json",
    "*.tiktoken",
    "*.model",
    "*.model.v[0-9]*",
    "*.spm",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "bpe.codes",
    "merges.txt",
    "normalizer.json",
    "encoder.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*processor_config.json",
    "*feature_extractor_config.json",
    "chat_template*.json",
    "chat_template*.jinja",
    "*.jinja",
    "params.json",
    "hf_quant_config.json",
    "quant*_config.json",
    "recipe.yaml",
    "scheduler_config.json",
    "model_index.json",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "*processing_*.py",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    CARD,
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Patterns of the files at the top of a checkpoint's folder that travel with the weights."""

_FOLDERS: Final = {
    "additional_chat_templates": ("*.jinja",),
    "custom_generate": ("*.py", "requirements.txt"),
    "1_Pooling": ("config.json",),
}
"""Folders within, and what of them travels."""

_MODULE_FILES: Final = (
    *("*.json", "*.txt", "*.model", "*.safetensors"),
    *("*.py", "*.tiktoken", "*.spm", "*.jinja"),
)
"""What travels of a folder that ``modules.json`` names."""

_MODULE_PATH: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

_ENDINGS: Final = (
    *(".json", ".txt", ".model", ".model.v[0-9]*", ".tiktoken", ".spm", ".bpe", ".codes"),
    *(".jinja", ".py", ".yaml", ".yml"),
)
SIDE_FILES: Final = (
    *(f"*{ending}" for ending in _ENDINGS),
    *("LICENSE*", "NOTICE*", "USE_POLICY*", "*/*.safetensors"),
)
"""Patterns of the files that a delta's folder may hold besides the delta: text, and the weights
of modules in folders within."""

LARGEST: Final = 256 << 20
"""Bytes: nothing larger is a small file."""

DEPTH: Final = 4
"""Folders within each other that are searched for small files."""

_TRAINING_STATE: Final = re.compile(
    r"optimizer.*|scheduler\.pt|rng_state.*|global_step.*/|.*\.distcp|pytorch_model_fsdp.*/"
    r"|trainer_state\.json|.*_optim_states\.pt|optim_.*\.pt|dist_ckpt/|scaler\.pt"
)

NO_RESUME: Final = (
    "optimizer state is not stored: training cannot be resumed from a delta, so keep one full "
    "checkpoint"
)


def holds_training_state(names: Collection[str]) -> bool:
    """Whether files hold the state of an optimizer or a trainer, by their names."""
    return any(_TRAINING_STATE.fullmatch(name) for name in names)


_GONE: Final = "it was removed or moved while it was being opened; give a checkpoint that stays"


@dataclass(frozen=True, slots=True)
class SideFiles(Closeable):
    """The files of a checkpoint beside its weights, open.

    Attributes:
        files: Those that travel with the weights, by their paths in the folder.
        skipped: Paths of those that do not; a folder ends with a slash.
        notes: Files that the model may need and that do not travel, and why.
    """

    files: dict[str, FileSource] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the files that travel."""
        return sum(source.nbytes for source in self.files.values())

    def check_unchanged(self) -> None:
        """Require that no file was written to since it was opened.

        Raises:
            RlsparseError: One was.
        """
        for source in self.files.values():
            source.check_unchanged()

    def close(self) -> None:
        """Close the files. May be called twice."""
        for source in self.files.values():
            source.close()


def open_side_files(
    checkpoint: Checkpoint, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> SideFiles:
    """Open the small files of a checkpoint, so that they outlive the folder as its weights do.

    Links out of the folder are not followed, except those of the Hub's cache. A stranger's folder
    could link to any file of the user.

    Args:
        checkpoint: The open checkpoint.
        include: Paths or patterns of more files to take: text or JSON, by their own names even
            if they are links.
        exclude: Patterns of files to leave out.

    Raises:
        NotFoundError: There is no file that ``include`` names.
        CheckpointError: The folder was removed or changed since the checkpoint was opened, or
            ``include`` names a file of a kind that never travels.
    """
    if not checkpoint.listing:
        return SideFiles()
    try:
        return _Selection(checkpoint, include, exclude).opened()
    except RlsparseError:
        raise
    except OSError as error:
        msg = f"cannot be read ({error.strerror}): {_GONE}"
        raise CheckpointError(msg, file=checkpoint.path) from error


class _Selection:
    """Chooses the side files of one checkpoint."""

    def __init__(
        self, checkpoint: Checkpoint, include: Sequence[str], exclude: Sequence[str]
    ) -> None:
        self._folder = checkpoint.path
        self._index = checkpoint.index_name
        self._weights = {INDEX, *(file.name for file in checkpoint.files)}
        # A text is a sequence of letters, each a pattern that no user means.
        self._exclude = [exclude] if isinstance(exclude, str) else exclude
        self._top = sorted(
            name
            for name in checkpoint.listing
            if not name.startswith(".") and name not in self._weights
        )
        self._notes: list[str] = []
        self._inside = self._folder.resolve()
        self._cache = cached_files(self._inside)
        self._paths = self._listed()
        self._included = self._include([include] if isinstance(include, str) else include)

    def opened(self) -> SideFiles:
        """The chosen files, open."""
        files: dict[str, FileSource] = {}
        try:
            chosen = sorted(self._chosen())
            for name in chosen:
                files[name] = FileSource(self._folder / name)
            for name, source in files.items():
                if source.read(0, min(source.nbytes, len(LFS_POINTER))) == LFS_POINTER:
                    self._notes.append(f"{name} is a git-lfs pointer, not the file itself")
            return SideFiles(files, self._skipped(chosen), self._notes)
        except BaseException as error:
            for source in files.values():
                source.close()
            if isinstance(error, NotFoundError):
                raise CheckpointError(_GONE, file=error.file) from error
            raise

    def _listed(self) -> list[str]:
        """Paths of the files in the folder and in those within that may hold side files."""
        found = []
        for name in self._top:
            inner = self._folder / name
            if not inner.is_dir():
                found.append(name)
            elif not inner.is_symlink() and not (inner / DELTA_FOLDER).exists():
                found += [f"{name}/{path}" for path in sorted(_below(inner, DEPTH - 1))]
        return found

    def _include(self, patterns: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for pattern in patterns:
            matched = {path for path in self._paths if fnmatchcase(path, pattern)}
            if not matched:
                msg = "no such file in the checkpoint, though --include names it"
                raise NotFoundError(msg, file=printable(str(self._folder / pattern)))
            for path in matched:
                if not _may_travel(path):
                    msg = "cannot be included: a delta keeps only text, JSON and Python files"
                    raise CheckpointError(msg, file=printable(str(self._folder / path)))
            found |= matched
        return found

    def _chosen(self) -> set[str]:
        wanted = {path for path in self._paths if self._is_wanted(path)}
        code = {path for path in wanted if path.endswith(".py")}
        present = [path for path in self._paths if self._is_carried(path)]
        wanted |= set(required_modules(code, present, self._read))
        wanted |= self._modules()
        left = {path for path in wanted if not self._is_excluded(path)}
        return {path for path in left if self._is_carried(path, notes=True)} | self._included

    def _is_wanted(self, path: str) -> bool:
        if path == self._index:
            return True
        folder, _, name = path.rpartition("/")
        if not folder:
            return any(fnmatchcase(name, pattern) for pattern in CARRIED_FILES)
        return any(fnmatchcase(name, pattern) for pattern in _FOLDERS.get(folder, ()))

    def _is_excluded(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self._exclude)

    def _is_carried(self, path: str, *, notes: bool = False) -> bool:
        """Whether a file is a regular one, small, and in the folder."""
        place = self._folder / path
        if not place.is_file():
            # A link without a target, or a name that is gone: opening it says so.
            return not os.path.lexists(place)
        leads_out = not self._is_inside(path)
        is_large = place.stat().st_size > LARGEST
        if notes and leads_out:
            self._notes.append(
                f"{path} is a link out of the folder and was not copied: put a copy in its place, "
                f"or name it (--include {path})"
            )
        if notes and is_large:
            self._notes.append(f"{path} was not copied: it is larger than {LARGEST >> 20} MiB")
        return not leads_out and not is_large

    def _is_inside(self, path: str) -> bool:
        found = (self._folder / path).resolve()
        return found.is_relative_to(self._inside) or found.parent == self._cache

    def _read(self, path: str) -> bytes:
        with FileSource(self._folder / path) as source:
            return source.read(0, min(source.nbytes, LARGEST_MODULE + 1))

    def _modules(self) -> set[str]:
        """The files of the folders that sentence-transformers loads as modules."""
        if "modules.json" not in self._paths or not self._is_carried("modules.json"):
            return set()
        try:
            modules: Any = json.loads(self._read("modules.json"))
        except (ValueError, RecursionError):
            return set()
        entries = modules if isinstance(modules, list) else []
        named = {entry.get("path") for entry in entries if isinstance(entry, dict)}
        folders = {path for path in named if isinstance(path, str) and _MODULE_PATH.fullmatch(path)}
        files = [path for path in self._paths if path.partition("/")[0] in folders]
        for folder in sorted(folders):
            inner = [path for path in files if path.startswith(f"{folder}/")]
            if not any(path.endswith(".safetensors") for path in inner):
                self._notes += [
                    f"{path} was not copied, though the model needs it: it is pickled; save the "
                    "model with safetensors"
                    for path in inner
                    if path.endswith(PICKLED)
                ]
        return {
            path
            for path in files
            if any(fnmatchcase(path.rpartition("/")[2], pattern) for pattern in _MODULE_FILES)
        }

    def _skipped(self, chosen: list[str]) -> list[str]:
        skipped = []
        for name in self._top:
            if name in chosen:
                continue
            if not (self._folder / name).is_dir():
                skipped.append(name)
                continue
            inner = [path for path in self._paths if path.startswith(f"{name}/")]
            left = [path for path in inner if path not in chosen]
            skipped += left if len(left) < len(inner) else [f"{name}/"]
        return skipped


def _may_travel(path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in SIDE_FILES) and not path.endswith(PICKLED)


def _below(folder: Path, depth: int) -> Iterator[str]:
    """Paths of the files in a folder and the folders in it, down to a depth, hidden ones not."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry.name
        elif depth > 1 and entry.name != DELTA_FOLDER:
            yield from (f"{entry.name}/{path}" for path in _below(folder / entry.name, depth - 1))


def delta_side_files(folder: Path, weights: set[str]) -> list[str]:
    """The files of a delta's folder that travel with it: every small text file.

    The folder may be a stranger's, and copying or publishing what a link in it leads to would give
    away any file of the user: ``config.json -> ~/.netrc``. Links are followed only where the Hub's
    client makes them, from a snapshot in its cache to the files of that repository.

    Args:
        folder: The folder.
        weights: Names that do not count.

    Raises:
        CheckpointError: One is another link.
    """
    inside = folder.resolve()
    cached = cached_files(inside)
    carried = []
    for name in sorted(_below(folder, DEPTH)):
        if name in weights or name == INDEX or not _may_travel(name) or _in_delta(folder, name):
            continue
        found = (folder / name).resolve()
        if found != inside / name and found.parent != cached:
            msg = "is a link, not followed in a delta: remove it or put a copy in its place"
            raise CheckpointError(msg, file=printable(str(folder / _link_in(folder, name))))
        if found.is_file() and found.stat().st_size <= LARGEST:
            carried.append(name)
    return carried


def _in_delta(folder: Path, name: str) -> bool:
    """Whether a file belongs to another delta, in a folder within."""
    top = name.partition("/")[0]
    return top != name and (folder / top / DELTA_FOLDER).exists()


def _link_in(folder: Path, name: str) -> str:
    """The first part of a path that is a link."""
    parts = name.split("/")
    paths = ("/".join(parts[: k + 1]) for k in range(len(parts)))
    return next((path for path in paths if (folder / path).is_symlink()), name)
