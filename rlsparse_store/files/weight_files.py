"""Which files of a folder make up its checkpoint: those that the folder's own loader reads."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlsparse_store.errors import CheckpointError, PickleRefusedError
from rlsparse_store.files.foreign_formats import PICKLED, pickled_weights
from rlsparse_store.files.source import LFS_POINTER, POINTER_REMEDY
from rlsparse_store.format.limits import MAX_FILES, MAX_TENSOR_HEADER
from rlsparse_store.format.names import is_file_name, printable
from rlsparse_store.format.strict_json import StrictJsonError, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from rlsparse_store.files.folder import Folder

__all__ = [
    "INDEX",
    "SINGLE",
    "SUFFIX",
    "ShardName",
    "WeightFiles",
    "choose_weight_files",
    "is_index",
    "is_rank_part",
    "parse_index",
    "parse_shard_name",
    "weight_map_of",
]

SUFFIX: Final = ".safetensors"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_STEMS: Final = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers call the weights of a folder."""

_INDEX: Final = re.compile(r"(?P<stem>.+)\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json")
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,6})-of-(?P<total>\d{5,6})\.safetensors")

_RANK_PART: Final = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""What torch.distributed.checkpoint calls a file with one rank's part of each tensor."""


class WeightFiles(NamedTuple):
    """The files that hold the tensors of a checkpoint.

    Attributes:
        names: Their names.
        index_name: The name of the index that lists them, if one does.
        index_text: What the index says.
        weight_map: The file of each tensor, as the index gives it.
        notes: What a user should know about the choice.
    """

    names: list[str]
    index_name: str | None = None
    index_text: bytes | None = None
    weight_map: Mapping[str, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()


class ShardName(NamedTuple):
    """What the name of a shard says: ``STEM-NUMBER-of-TOTAL.safetensors``, numbers from 1."""

    stem: str
    number: int
    total: int


def parse_shard_name(name: str) -> ShardName | None:
    """Read the name of a shard; ``None`` if the file is none.

    Example:
        >>> parse_shard_name("model-00001-of-00002.safetensors")
        ShardName(stem='model', number=1, total=2)
        >>> parse_shard_name("model.safetensors")
    """
    found = _SHARD.fullmatch(name)
    return found and ShardName(found["stem"], int(found["number"]), int(found["total"]))


def is_index(name: str) -> bool:
    """Whether a file of this name lists shards."""
    return _INDEX.fullmatch(name) is not None


def is_rank_part(name: str) -> bool:
    """Whether a file of this name holds one rank's part of the tensors.

    Example:
        >>> is_rank_part("shard-00001-model-00001-of-00001.safetensors")
        True
    """
    return _RANK_PART.fullmatch(name) is not None


def choose_weight_files(folder: Folder, place: Path) -> WeightFiles | None:
    """Choose the files that the loader of a folder reads.

    transformers and diffusers take the file or the index of their own name before any other.
    Without these, the only index or the only file counts. Files of macOS beside others
    (``._model.safetensors``) never count.

    Args:
        folder: The files.
        place: What the folder is called in errors.

    Returns:
        The files, or ``None`` if the folder holds no safetensors file.

    Raises:
        PickleRefusedError: The index lists pickled weights.
        CheckpointError: The checkpoint is incomplete, or loaders disagree about its files.
    """
    names = {name for name in folder.names() if not name.startswith(".")}
    found = sorted(name for name in names if name.endswith(SUFFIX))
    for stem in _STEMS:
        index, single = f"{stem}{SUFFIX}.index.json", f"{stem}{SUFFIX}"
        if index in names:
            return _listed(folder, place, index, single, names)
        if single in found:
            return WeightFiles([single])
    indexes = sorted(filter(is_index, names))
    if len(indexes) > 1:
        msg = (
            f"holds {len(indexes)} indexes, {printable(', '.join(indexes))}, and none of the name "
            f"that loaders look for; give a folder with one of them and its files"
        )
        raise CheckpointError(msg, file=place)
    if indexes:
        return _listed(folder, place, indexes[0], _single_of(indexes[0]), names)
    if not found:
        return None
    if len(found) > 1:
        raise CheckpointError(_several(found), file=place)
    shard = parse_shard_name(found[0])
    if shard is not None and shard.total > 1:
        raise CheckpointError(_several(found), file=place)
    return WeightFiles(found)


def _single_of(index: str) -> str:
    """The file that holds all weights under the same stem and variant as an index."""
    found = _INDEX.fullmatch(index)
    assert found is not None  # noqa: S101 - the name was chosen by this pattern
    return ".".join(filter(None, (found["stem"], found["variant"]))) + SUFFIX


def _several(found: list[str]) -> str:
    """What is wrong with files that no index lists."""
    if all(map(is_rank_part, found)):
        return (
            f"holds the parts of {len(found)} ranks, not a model; give the folder of the merged "
            "files (consolidated/), or merge them first (consolidate_safetensors_files of "
            "torch.distributed.checkpoint)"
        )
    shards = [shard for name in found if (shard := parse_shard_name(name)) is not None]
    sets = {(shard.stem, shard.total) for shard in shards}
    if len(shards) == len(found) and len(sets) == 1:
        ((stem, total),) = sets
        missing = sorted(set(range(1, total + 1)) - {shard.number for shard in shards})
        problem = f"holds {len(found)} of {total} shards" if missing else f"holds {total} shards"
        return (
            f"is incomplete: {problem} and no index ({stem}{SUFFIX}.index.json), which is written "
            "last; wait until it is saved, or copy or download it again"
        )
    return (
        f"holds {len(found)} safetensors files, {printable(', '.join(found))}, but no {INDEX} that "
        "says which belong to it; add the index, or give one of the files"
    )


def _listed(
    folder: Folder, place: Path, index: str, single: str, names: Collection[str]
) -> WeightFiles:
    """The files that an index lists, unless a single file beside it is the model."""
    with folder.open(index) as source:
        text = source.read(0, min(source.nbytes, MAX_TENSOR_HEADER))
    if text.startswith(LFS_POINTER):
        raise CheckpointError(POINTER_REMEDY, file=place / index)
    weight_map = weight_map_of(text, place / index)
    listed = sorted(set(weight_map.values()))
    if single not in names or single in listed:
        _require_files(place, index, listed, names)
        return WeightFiles(listed, index, text, weight_map)
    if listed and all(name in names for name in listed):
        msg = (
            f"holds two checkpoints: {single}, which transformers reads, and the "
            f"{len(listed)} files that {index} lists, which vLLM reads; remove the older one, or "
            f"give {single} itself"
        )
        raise CheckpointError(msg, file=place)
    if index != INDEX:
        _require_files(place, index, listed, names)
    note = f"{index} is not read: it lists files that are gone, and {single} is the model"
    return WeightFiles([single], notes=(note,))


def _require_files(place: Path, index: str, listed: list[str], names: Collection[str]) -> None:
    """Require that the files that an index lists are acceptable and present."""
    for name in listed:
        if name.endswith(PICKLED):
            raise PickleRefusedError(pickled_weights(), file=place / index)
        if not (is_file_name(name) and name.endswith(SUFFIX)):
            msg = f"names {printable(name)!r}, which is not a plain safetensors file name"
            raise CheckpointError(msg, file=place / index)
        if name not in names:
            raise CheckpointError(_missing(name, index, listed, names), file=place)
    if not 0 < len(listed) <= MAX_FILES:
        msg = f"names {len(listed)} files; 1 to {MAX_FILES} are accepted"
        raise CheckpointError(msg, file=place / index)


def _missing(shard: str, index: str, listed: Collection[str], names: Collection[str]) -> str:
    """What is wrong with a folder that lacks a shard of its index.

    Files that are no shards, such as Mistral's ``consolidated.safetensors``, say nothing about it.
    """
    shards = [name for name in names if parse_shard_name(name) is not None]
    if shards and not any(name in names for name in listed):
        return (
            f"{index} lists {shard} and none of the {len(shards)} shards here: it is of another "
            "save; save the checkpoint again, or write the index of these shards"
        )
    return f"the shard {shard} is missing; copy or download the checkpoint again"


def weight_map_of(text: bytes, path: Path) -> dict[str, str]:
    """The file of each tensor, as an index gives it.

    Args:
        text: The index.
        path: What it is called in errors.

    Raises:
        CheckpointError: It is no index.
    """
    try:
        index: Any = parse_index(text)
    except StrictJsonError as error:
        msg = f"{error}; save, copy or download it again"
        raise CheckpointError(msg, file=path) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        msg = "has no weight_map from names to files"
        raise CheckpointError(msg, file=path)
    return weight_map


def parse_index(text: bytes) -> Any:  # noqa: ANN401 - JSON has no one type
    """Parse an index file, whose metadata may hold any JSON but duplicate keys and bombs.

    Raises:
        StrictJsonError: It is not such JSON.
    """
    return parse(text, most_objects=1000, any_number=True)
