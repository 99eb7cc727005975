"""Opening a checkpoint: its files, and the place of each tensor's bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rlsparse_store.errors import CheckpointError, NotFoundError
from rlsparse_store.files.closeable import Closeable
from rlsparse_store.files.collector import collector_paused
from rlsparse_store.files.folder import LocalFolder, files_below
from rlsparse_store.files.foreign_formats import no_weights, unsafe_file
from rlsparse_store.files.hub_cache import cached_files
from rlsparse_store.files.weight_files import (
    INDEX,
    SUFFIX,
    WeightFiles,
    choose_weight_files,
    parse_index,
)
from rlsparse_store.format.header import HeaderError, ParsedHeader, parse_header
from rlsparse_store.format.limits import MAX_TENSOR_HEADER, MAX_TENSORS
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from rlsparse_store.files.folder import Folder
    from rlsparse_store.files.source import Source
    from rlsparse_store.format.dtypes import Dtype

__all__ = [
    "INDEX",
    "Checkpoint",
    "CheckpointFile",
    "TensorRef",
    "open_checkpoint",
    "open_files",
    "parse_index",
]

_PICKLED_MODEL: Final = re.compile(r"(?:pytorch_model|diffusion_pytorch_model)\b.*\.bin")
"""What transformers and diffusers call a model that they pickle."""

_LISTED: Final = 3
"""Tensors that a message names."""


class TensorRef(NamedTuple):
    """One tensor of a checkpoint and the place of its bytes.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: Its dimensions, in elements.
        file: Place of its file among the checkpoint's files.
        offset: Position of its first byte in that file.
        nbytes: Its length in bytes.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One safetensors file of a checkpoint.

    Attributes:
        name: Its file name.
        source: Its bytes.
        header: Its JSON header with padding.
        parsed: What the header says.
    """

    name: str
    source: Source
    header: bytes
    parsed: ParsedHeader


@dataclass(frozen=True, slots=True)
class Checkpoint(Closeable):
    """An open checkpoint.

    Attributes:
        path: The folder or file it was opened from.
        files: Its files, by name.
        tensors: Its tensors by name, names in ascending byte order.
        index_text: The bytes of its ``model.safetensors.index.json``, if it has one.
        index_name: The name of its index, if it has one, whatever that is.
        notes: What a user should know about the choice of its files.
        oddities: How its index contradicts its shards. Such a checkpoint is a base like any other,
            but its files cannot be rebuilt.
        listing: The names in its folder, read before its weights were opened.
    """

    path: Path
    files: list[CheckpointFile]
    tensors: dict[str, TensorRef]
    index_text: bytes | None
    index_name: str | None = None
    notes: tuple[str, ...] = ()
    oddities: tuple[str, ...] = ()
    listing: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, tensor: TensorRef, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Read ``nbytes`` bytes of a tensor from byte ``start`` of its data on.

        Raises:
            RlsparseError: The file was cut short or cannot be read.
        """
        out = np.empty(nbytes, np.uint8)
        self.read_into(tensor, start, out)
        return out

    def read_into(self, tensor: TensorRef, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with bytes of a tensor from byte ``start`` of its data on.

        Raises:
            RlsparseError: The file was cut short or cannot be read.
        """
        self.files[tensor.file].source.read_into(out, tensor.offset + start)

    def check_unchanged(self) -> None:
        """Require that no file was written to since it was opened.

        Raises:
            RlsparseError: One was.
        """
        for file in self.files:
            file.source.check_unchanged()

    def close(self) -> None:
        """Close its files. May be called twice."""
        for file in self.files:
            file.source.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: a Hugging Face folder or one ``.safetensors`` file.

    Args:
        path: The folder or the file.

    Returns:
        The open checkpoint: close it, or use it in a ``with`` statement.

    Raises:
        NotFoundError: It does not exist.
        PickleRefusedError: It holds only pickled weights.
        CheckpointError: A file is missing or broken, or loaders disagree about the files.
    """
    if not path.exists():
        msg = "no such file or folder (Hub ids look like ORG/NAME)"
        raise NotFoundError(msg, file=printable(str(path)))
    if path.is_file():
        return open_files(path, LocalFolder(path.parent), WeightFiles([_require_safetensors(path)]))
    if not path.is_dir():
        msg = "neither a folder nor a regular file"
        raise CheckpointError(msg, file=path)
    folder = LocalFolder(path)
    listing = tuple(folder.names())
    chosen = choose_weight_files(folder, path)
    if chosen is None:
        raise no_weights(files_below(path), path)
    notes = (*chosen.notes, *_newer_pickles(path, listing, chosen.names))
    return open_files(path, folder, chosen._replace(notes=notes), listing)


def _newer_pickles(path: Path, listing: tuple[str, ...], chosen: list[str]) -> list[str]:
    """Pickled weights that were written after the safetensors files, which every loader prefers.

    The times of downloaded files say nothing: a repository may have both formats.
    """
    pickled = [name for name in listing if _PICKLED_MODEL.fullmatch(name)]
    if not pickled or _is_downloaded(path):
        return []
    try:
        newest = max((path / name).stat().st_mtime_ns for name in chosen)
        newer = [name for name in sorted(pickled) if (path / name).stat().st_mtime_ns > newest]
    except OSError:
        # Opening the files says what is wrong with them.
        return []
    if not newer:
        return []
    note = (
        f"{newer[0]} is newer than the safetensors files, and pickled weights are never read: if "
        "the folder was saved to twice, save it again with safetensors"
    )
    return [note]


def _is_downloaded(path: Path) -> bool:
    """Whether the Hub's client made a folder: in its cache, or with its records inside."""
    return cached_files(path.resolve()) is not None or (path / ".cache" / "huggingface").is_dir()


def open_files(
    path: Path, folder: Folder, weights: WeightFiles, listing: tuple[str, ...] = ()
) -> Checkpoint:
    """Open the checkpoint that some files make up, on disk or elsewhere.

    Args:
        path: What it is called.
        folder: The files.
        weights: Those with its tensors.
        listing: The names in the folder, if side files will be read.

    Raises:
        CheckpointError: A file is broken.
    """
    files: list[CheckpointFile] = []
    try:
        for name in weights.names:
            # Not a comprehension: those already open must be closed if a later one is broken.
            files.append(_open_file(folder.open(name), name))  # noqa: PERF401
        place = path if path.is_dir() else path.parent
        with collector_paused():
            return _collected(path, place, files, weights, listing)
    except BaseException:
        for file in files:
            file.source.close()
        raise


def _require_safetensors(path: Path) -> str:
    """The name of a checkpoint that is one file.

    Raises:
        PickleRefusedError: It is pickled.
        CheckpointError: It is something else.
    """
    refused = unsafe_file(path.name, path)
    if refused is not None:
        raise refused
    if path.suffix != SUFFIX:
        msg = "not a .safetensors file; give one, or the folder of a checkpoint"
        raise CheckpointError(msg, file=path)
    return path.name


def _open_file(source: Source, name: str) -> CheckpointFile:
    try:
        header = source.read_header(MAX_TENSOR_HEADER)
        with collector_paused():
            parsed = parse_header(header, source.nbytes - 8 - len(header))
    except HeaderError as error:
        source.close()
        tensor = printable(error.tensor) if error.tensor is not None else None
        raise CheckpointError(str(error), file=source.path, tensor=tensor) from error
    except BaseException:
        source.close()
        raise
    return CheckpointFile(name, source, header, parsed)


def _collected(
    path: Path,
    place: Path,
    files: list[CheckpointFile],
    weights: WeightFiles,
    listing: tuple[str, ...],
) -> Checkpoint:
    """The checkpoint of some open files, its tensors found in their headers."""
    listed = weights.weight_map
    found: dict[str, TensorRef] = {}
    twice: list[str] = []
    for number, file in enumerate(files):
        data = 8 + len(file.header)
        for e in file.parsed.entries:
            if e.name in found:
                other = files[found[e.name].file].name
                if listed.get(e.name) not in {file.name, other}:
                    msg = f"stands in {other} and in {file.name}"
                    raise CheckpointError(msg, file=place, tensor=printable(e.name))
                twice.append(e.name)
                if listed[e.name] == other:
                    continue
            found[e.name] = TensorRef(
                e.name, e.dtype, e.shape, number, data + e.start, e.end - e.start
            )
    if len(found) > MAX_TENSORS:
        msg = f"holds {len(found)} tensors; at most {MAX_TENSORS} are accepted"
        raise CheckpointError(msg, file=place)
    absent = _absent(place, files, found, listed, weights.index_name or "")
    tensors = {name: found[name] for name in sorted(found, key=str.encode)}
    index_text = weights.index_text if weights.index_name == INDEX else None
    oddities = _oddities(weights.index_name or "", absent, sorted(twice))
    return Checkpoint(
        path, files, tensors, index_text, weights.index_name, weights.notes, oddities, listing
    )


def _absent(
    place: Path,
    files: list[CheckpointFile],
    found: dict[str, TensorRef],
    listed: Mapping[str, str],
    index: str,
) -> list[str]:
    """The tensors that an index lists and no shard holds.

    Raises:
        CheckpointError: A tensor is in another file than the index says.
    """
    for name, file in listed.items():
        if name in found and files[found[name].file].name != file:
            msg = (
                f"is not in {file}, where {index} says it is; save the checkpoint again, or "
                "download it again"
            )
            raise CheckpointError(msg, file=place, tensor=printable(name))
    return sorted(name for name in listed if name not in found)


def _oddities(index: str, absent: list[str], twice: list[str]) -> tuple[str, ...]:
    """What an index says that its shards do not bear out; loaders read such a checkpoint."""
    found = []
    if absent:
        found.append(f"{index} lists {_counted(absent)} that no shard holds")
    if twice:
        found.append(f"{_counted(twice)} stand in two shards, and {index} decides which counts")
    return tuple(found)


def _counted(names: list[str]) -> str:
    shown = printable(", ".join(names[:_LISTED])) + (" …" if len(names) > _LISTED else "")
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''} ({shown})"
