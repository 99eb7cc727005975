"""Decoding chunks on a device, into the words that lie there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rlsparse_store.backends.gpu import GpuBackend, hash_on_device
from rlsparse_store.codec import DeltaChunk, decode_delta, decode_whole, to_bytes
from rlsparse_store.container import ChunkCoding
from rlsparse_store.digest import leaves_check
from rlsparse_store.errors import FormatError, ResultMismatchError
from rlsparse_store.storage.names import shown
from rlsparse_store.torch.device import words_of

if TYPE_CHECKING:
    from rlsparse_store.container import ChunkRecord, DeltaReader, TensorRecord
    from rlsparse_store.delta import ChunkDecoder

__all__ = ["patch_on_device"]


def patch_on_device(
    reader: DeltaReader,
    decoder: ChunkDecoder,
    t: TensorRecord,
    chunk: ChunkRecord,
    place: torch.Tensor,
) -> None:
    """Change the words of a chunk where they are.

    Nothing that is not checked is ever in their place.

    Args:
        reader: The delta, whose stored bytes were checked.
        decoder: Knows the base for errors.
        t: The tensor.
        chunk: The chunk.
        place: The tensor's bytes from the chunk's first word to its last, on the device.

    Raises:
        FormatError: The delta is damaged, or these are not the base's words.
    """
    try:
        after = _decode(reader, decoder, t, chunk, place)
        if leaves_check(hash_on_device(after)) != chunk.result:
            msg = "a decoded chunk does not have its check; the delta is damaged"
            raise ResultMismatchError(msg)
    except FormatError as error:
        error.file = error.file or reader.path
        error.tensor = error.tensor or shown(t.name)
        raise
    place.copy_(after)


def _decode(
    reader: DeltaReader,
    decoder: ChunkDecoder,
    t: TensorRecord,
    chunk: ChunkRecord,
    place: torch.Tensor,
) -> torch.Tensor:
    assert t.coding is not None  # noqa: S101 - the index was checked
    stored = reader.stored(chunk)
    if chunk.coding is ChunkCoding.WHOLE:
        data = to_bytes(decode_whole(stored, chunk.length, t.coding), t.coding.width)
        return torch.from_numpy(data).to(place.device)
    decoder.check_base(t, chunk, hash_on_device(place))
    has_rows = chunk.coding is ChunkCoding.DELTA_WITH_ROWS
    coded = DeltaChunk(stored, has_rows, chunk.bounds, chunk.changed, ())
    row = None if t.row_words is None else (t.row_words, chunk.first % t.row_words)
    # A backend's words may be of a type of its own: these are tensors.
    backend: Any = GpuBackend()
    words: Any = words_of(place, t.coding.width)
    out: Any = torch.empty_like(words)
    decode_delta(backend, words, t.coding, coded, row, out)
    found: torch.Tensor = out.view(torch.uint8)
    return found
