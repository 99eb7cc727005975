"""Reading mask files. They are untrusted."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import torch

from rlsparse_store.analysis.masks import MASK_KEY, count_ones
from rlsparse_store.errors import CheckpointError
from rlsparse_store.files.checkpoint import open_files
from rlsparse_store.files.folder import LocalFolder
from rlsparse_store.files.weight_files import WeightFiles
from rlsparse_store.format.limits import MAX_DIMENSION, MAX_RANK, MAX_TENSORS
from rlsparse_store.format.names import printable
from rlsparse_store.format.strict_json import StrictJsonError, parse
from rlsparse_store.torch.masks import Mask

if TYPE_CHECKING:
    from os import PathLike

    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef

__all__ = ["load_mask"]

_DIGEST: Final = re.compile("[0-9a-f]{64}")
_REMEDY: Final = "create it again with `rlsparse mask`"


def load_mask(path: str | PathLike[str]) -> Mask:
    """Read a mask that ``rlsparse mask`` wrote.

    Args:
        path: The file.

    Raises:
        NotFoundError: The file does not exist.
        CheckpointError: The file is not a mask, or its metadata and bits disagree.

    Example:
        >>> load_mask("mask.safetensors").density  # doctest: +SKIP
        0.158
    """
    path = Path(path)
    with open_files(path, LocalFolder(path.parent), WeightFiles([path.name])) as stored:
        metadata = _read_metadata(stored)
        shapes, bits = {}, {}
        for name, tensor in stored.tensors.items():
            entry = metadata["tensors"][name]
            shapes[name] = _read_shape(stored, name, entry)
            words, ones = math.prod(shapes[name]), entry.get("trainable")
            bits[name] = _read_bits(stored, tensor, words, ones)
    return Mask(bits, shapes, metadata["base"])


def _read_metadata(stored: Checkpoint) -> dict[str, Any]:
    """Read the metadata of a mask.

    Raises:
        CheckpointError: The file has no metadata of a mask, or they are invalid.
    """
    file = printable(str(stored.path))
    text = (stored.files[0].parsed.metadata or {}).get(MASK_KEY, "")
    try:
        metadata = parse(text.encode(), most_objects=MAX_TENSORS + 3, any_number=True)
    except StrictJsonError as error:
        msg = "not a mask file; create one with `rlsparse mask`"
        raise CheckpointError(msg, file=file) from error
    if not isinstance(metadata, dict) or metadata.get("version") != 1:
        msg = f"unknown version of the mask format; {_REMEDY}"
        raise CheckpointError(msg, file=file)
    base, tensors = metadata.get("base"), metadata.get("tensors")
    base_is_valid = base is None or (isinstance(base, str) and _DIGEST.fullmatch(base))
    names_match = isinstance(tensors, dict) and tensors.keys() == stored.tensors.keys()
    if not base_is_valid or not names_match or metadata.get("polarity") != "1 = trainable":
        msg = f"invalid mask metadata; {_REMEDY}"
        raise CheckpointError(msg, file=file)
    return metadata


def _read_shape(stored: Checkpoint, name: str, entry: object) -> tuple[int, ...]:
    """Read the dimensions of a masked tensor.

    Raises:
        CheckpointError: The dimensions are invalid.
    """
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not _is_shape(shape):
        msg = f"invalid dimensions in the mask metadata; {_REMEDY}"
        raise CheckpointError(msg, file=printable(str(stored.path)), tensor=printable(name))
    return tuple(shape)


def _is_shape(value: object) -> TypeGuard[list[int]]:
    """Return whether a tensor can have these dimensions."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        return False
    if not all(type(size) is int and size >= 0 for size in value):
        return False
    # torch multiplies the dimensions even if one of them is 0.
    return math.prod(size or 1 for size in value) <= MAX_DIMENSION


def _read_bits(stored: Checkpoint, tensor: TensorRef, words: int, ones: object) -> torch.Tensor:
    """Read the bits of a tensor's mask, one per word.

    Raises:
        CheckpointError: The number of bits, or of set bits, is not the expected one.
    """
    data = stored.read(tensor, 0, tensor.nbytes)
    is_sound = tensor.dtype.code == "U8" and data.size == -(-words // 8)
    if is_sound and words % 8:
        # Padding bits after the last weight must be 0.
        is_sound = not data[-1] >> words % 8
    if not is_sound or count_ones(data) != ones:
        msg = f"the mask's bits disagree with its metadata; {_REMEDY}"
        raise CheckpointError(msg, file=printable(str(stored.path)), tensor=printable(tensor.name))
    return torch.from_numpy(data)
