"""Masks as files, which may come from strangers."""

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
from rlsparse_store.format.limits import MAX_DIMENSION, MAX_RANK, MAX_TENSORS
from rlsparse_store.format.names import printable
from rlsparse_store.format.strict_json import StrictJsonError, parse
from rlsparse_store.torch.masks import Mask

if TYPE_CHECKING:
    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef

__all__ = ["load_mask"]

_DIGEST: Final = re.compile("[0-9a-f]{64}")


def load_mask(path: str | Path) -> Mask:
    """Read a mask that ``rlsparse mask`` wrote.

    Args:
        path: The file.

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: It is no mask, or does not say of its bits what they are.

    Example:
        >>> load_mask("mask.safetensors").density  # doctest: +SKIP
        0.158
    """
    path = Path(path)
    with open_files(path, LocalFolder(path.parent), [path.name]) as stored:
        told = _error_to_message(stored)
        shapes, bits = {}, {}
        for name, tensor in stored.tensors.items():
            about = told["tensors"][name]
            shapes[name] = _shape(stored, name, about)
            words, ones = math.prod(shapes[name]), about.get("trainable")
            bits[name] = _stored_bits(stored, tensor, words, ones)
    return Mask(bits, shapes, told["base"])


def _error_to_message(stored: Checkpoint) -> dict[str, Any]:
    """What the metadata of a mask say.

    Raises:
        CheckpointError: They are not those of a mask.
    """
    file = printable(str(stored.path))
    text = (stored.files[0].parsed.metadata or {}).get(MASK_KEY, "")
    try:
        told = parse(text.encode(), most_objects=MAX_TENSORS + 3, any_number=True)
    except StrictJsonError as error:
        msg = "is no mask: make one with `rlsparse mask`"
        raise CheckpointError(msg, file=file) from error
    if not isinstance(told, dict) or told.get("version") != 1:
        msg = "is a mask of a version that is not known here: make it again with `rlsparse mask`"
        raise CheckpointError(msg, file=file)
    base, tensors = told.get("base"), told.get("tensors")
    knows_base = base is None or (isinstance(base, str) and _DIGEST.fullmatch(base))
    names_all = isinstance(tensors, dict) and tensors.keys() == stored.tensors.keys()
    if not knows_base or not names_all or told.get("polarity") != "1 = trainable":
        msg = "does not say what its bits are about: make it again with `rlsparse mask`"
        raise CheckpointError(msg, file=file)
    return told


def _shape(stored: Checkpoint, name: str, about: object) -> tuple[int, ...]:
    """The dimensions of a tensor that a mask is about.

    Raises:
        CheckpointError: No tensor has such dimensions.
    """
    shape = about.get("shape") if isinstance(about, dict) else None
    if not _is_shape(shape):
        msg = "the mask gives it dimensions that no tensor has: make it again with `rlsparse mask`"
        raise CheckpointError(msg, file=printable(str(stored.path)), tensor=printable(name))
    return tuple(shape)


def _is_shape(value: object) -> TypeGuard[list[int]]:
    """Whether these are dimensions that a tensor can have."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        return False
    if not all(type(size) is int and size >= 0 for size in value):
        return False
    # Torch multiplies them, also where one of them is zero.
    return math.prod(size or 1 for size in value) <= MAX_DIMENSION


def _stored_bits(stored: Checkpoint, tensor: TensorRef, words: int, ones: object) -> torch.Tensor:
    """The bits of a tensor's mask, one for each word.

    Raises:
        CheckpointError: They are not, or are not as many ones as are told.
    """
    data = stored.read(tensor, 0, tensor.nbytes)
    sound = tensor.dtype.code == "U8" and data.size == -(-words // 8)
    if sound and words % 8:
        # Bits behind the last weight belong to none.
        sound = not data[-1] >> words % 8
    if not sound or count_ones(data) != ones:
        msg = "the mask's bits are not those that it tells of: make it again with `rlsparse mask`"
        raise CheckpointError(msg, file=printable(str(stored.path)), tensor=printable(tensor.name))
    return torch.from_numpy(data)
