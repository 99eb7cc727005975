"""How a checkpoint is laid out in files, kept small (``specs/format.md`` section 12).

Nearly every file in the wild is one that a few words describe: names in one of two orders, data
adjacent, one metadata text. Such a header is described and rebuilt; any other is kept verbatim.
"""

from __future__ import annotations

import json
from itertools import pairwise
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple

from rlsparse_store.files.checkpoint import INDEX, Checkpoint, CheckpointFile
from rlsparse_store.format.header import (
    HeaderEntry,
    HeaderError,
    frame_header,
    header_text,
    is_text_mapping,
    parse_header,
)
from rlsparse_store.format.limits import MAX_TENSORS
from rlsparse_store.format.names import printable
from rlsparse_store.format.strict_json import (
    JsonDepthError,
    StrictJsonError,
    parse,
    parse_document,
    printed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlsparse_store.format.dtypes import Dtype

__all__ = [
    "INDEX_NAME",
    "FileLayout",
    "IndexLayout",
    "LayoutError",
    "LayoutLimitError",
    "TensorShape",
    "describe_file",
    "describe_index",
    "rebuild_header",
    "rebuild_index",
    "stored_metadata",
]

INDEX_NAME = INDEX
BY_NAME, BY_DTYPE, VERBATIM = 0, 1, 2
NO_INDEX, REBUILT_INDEX, VERBATIM_INDEX = 0, 1, 2


class LayoutError(ValueError):
    """A stored layout does not fit the tensors. Callers turn it into their own error."""


class LayoutLimitError(LayoutError):
    """A stored layout exceeds a limit of the format."""


class TensorShape(NamedTuple):
    """What a header says of a tensor, before it has a place in a file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        nbytes = self.dtype.nbytes(self.shape)
        if nbytes is None:
            msg = f"{self.name}: {self.dtype.code} of this shape is not a whole number of bytes"
            raise LayoutError(msg)
        return nbytes


class FileLayout(NamedTuple):
    """One file: its name, the number of its layout, and the text that goes with it."""

    name: str
    layout: int
    text: bytes


class IndexLayout(NamedTuple):
    """The index file: the number of its layout and the text that goes with it."""

    layout: int
    text: bytes


def _placed(tensors: Iterable[TensorShape], layout: int) -> list[HeaderEntry]:
    ordered = sorted(tensors, key=lambda t: t.name.encode())
    if layout == BY_DTYPE:
        ordered.sort(key=lambda t: -t.dtype.number)
    entries, place = [], 0
    for t in ordered:
        end = place + t.nbytes
        entries.append(HeaderEntry(t.name, t.dtype, t.shape, place, end))
        place = end
    return entries


def _is_ordered(tensors: list[TensorShape], layout: int) -> bool:
    """Whether tensors are in the order of a layout."""
    kinds = [-t.dtype.number if layout == BY_DTYPE else 0 for t in tensors]
    keys = [(kind, t.name.encode()) for kind, t in zip(kinds, tensors, strict=True)]
    return all(a < b for a, b in pairwise(keys))


def _framed(entries: list[HeaderEntry], text: bytes) -> bytes:
    return frame_header(header_text(entries, text.decode()))


def describe_file(file: CheckpointFile) -> FileLayout:
    """Describe a file so that its header can be rebuilt byte for byte."""
    metadata = file.parsed.metadata
    text = b""
    if metadata is not None:
        text = json.dumps(metadata, separators=(",", ":"), ensure_ascii=False).encode()
    tensors = [TensorShape(e.name, e.dtype, e.shape) for e in file.parsed.entries]
    for layout in (BY_NAME, BY_DTYPE):
        if not _is_ordered(tensors, layout):
            continue
        entries = _placed(tensors, layout)
        if entries == file.parsed.entries and _framed(entries, text)[8:] == file.header:
            return FileLayout(file.name, layout, text)
    return FileLayout(file.name, VERBATIM, file.header)


def rebuild_header(
    layout: FileLayout, tensors: list[TensorShape]
) -> tuple[bytes, list[HeaderEntry]]:
    """Rebuild the leading bytes of a file and the places of its tensors.

    Args:
        layout: What :func:`describe_file` gave.
        tensors: The tensors of this file, in any order.

    Raises:
        LayoutError: The layout does not fit these tensors.
    """
    if layout.layout in (BY_NAME, BY_DTYPE):
        if layout.text:
            if not (layout.text.startswith(b"{") and layout.text.endswith(b"}")):
                msg = f"the stored metadata of {layout.name} has white space around it"
                raise LayoutError(msg)
            stored_metadata(layout)
        entries = _placed(tensors, layout.layout)
        return _framed(entries, layout.text), entries
    framed = len(layout.text).to_bytes(8, "little") + layout.text
    return framed, _check_header(layout.text, layout.name, tensors)


def stored_metadata(layout: FileLayout) -> dict[str, str] | None:
    """The texts that a file had in its header, if it had any.

    Raises:
        LayoutError: The stored text is not the JSON it must be.
    """
    if not layout.text:
        return None
    try:
        # As many objects as a header may hold, of which a verbatim one is made.
        text = layout.text.rstrip(b" ")
        fields = parse(text, most_objects=MAX_TENSORS + 2)
    except StrictJsonError as error:
        msg = f"the stored metadata of {layout.name}: {error}"
        raise LayoutError(msg) from error
    if layout.layout == VERBATIM:
        fields = fields.get("__metadata__") if isinstance(fields, dict) else fields
    if fields is not None and not is_text_mapping(fields):
        msg = f"the stored metadata of {layout.name} does not map texts to texts"
        raise LayoutError(msg)
    metadata: dict[str, str] | None = fields
    return metadata


def _check_header(header: bytes, name: str, tensors: list[TensorShape]) -> list[HeaderEntry]:
    """Require that a header is sound and describes exactly these tensors."""
    try:
        entries = parse_header(header, sum(t.nbytes for t in tensors)).entries
    except HeaderError as error:
        msg = f"the stored header of {name}: {error}"
        raise LayoutError(msg) from error
    if {e.name: (e.dtype, e.shape) for e in entries} != {t.name: t[1:] for t in tensors}:
        msg = f"the stored header of {name} describes other tensors"
        raise LayoutError(msg)
    return entries


def _rebuilt_index(metadata: object, weight_map: dict[str, str]) -> bytes:
    frame = printed({"metadata": metadata, "weight_map": {}})
    if not weight_map:
        return frame + b"\n"
    # What json.dumps gives, which takes several times as long with an indent.
    lines = ",\n".join(
        f"    {encode_basestring_ascii(name)}: {encode_basestring_ascii(file)}"
        for name, file in sorted(weight_map.items())
    )
    return frame.removesuffix(b"}\n}") + f"\n{lines}\n  }}\n}}\n".encode()


def _has_one_text(value: object) -> bool:
    """Whether the format says how this is printed: floats and ``null`` are kept verbatim."""
    if isinstance(value, dict | list):
        return all(map(_has_one_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | bool | int)


def _weight_map(checkpoint: Checkpoint) -> dict[str, str]:
    return {name: checkpoint.files[t.file].name for name, t in checkpoint.tensors.items()}


def describe_index(checkpoint: Checkpoint) -> IndexLayout:
    """Describe a checkpoint's index file so that it can be rebuilt byte for byte.

    Raises:
        LayoutError: It does not map every tensor to its file, or is no JSON of the format.
    """
    if checkpoint.index_text is None:
        return IndexLayout(NO_INDEX, b"")
    try:
        index = parse_document(checkpoint.index_text, any_number=True)
    except StrictJsonError as error:
        msg = f"{INDEX_NAME}: {error}"
        raise LayoutError(msg) from error
    weight_map, metadata = _weight_map(checkpoint), index.get("metadata")
    if index["weight_map"] != weight_map:
        name = printable(min(weight_map.keys() - index["weight_map"].keys()))
        msg = f"{INDEX_NAME} does not list the tensor {name!r}; save the checkpoint again"
        raise LayoutError(msg)
    if _has_one_text(metadata) and _rebuilt_index(metadata, weight_map) == checkpoint.index_text:
        return IndexLayout(REBUILT_INDEX, printed(metadata))
    return IndexLayout(VERBATIM_INDEX, checkpoint.index_text)


def rebuild_index(layout: IndexLayout, weight_map: dict[str, str]) -> bytes | None:
    """Rebuild the index file, if there was one.

    Args:
        layout: What :func:`describe_index` gave.
        weight_map: File of each tensor.

    Raises:
        LayoutError: The stored text is not the JSON it must be.
    """
    if layout.layout == NO_INDEX:
        return None
    rebuilt = layout.layout == REBUILT_INDEX
    try:
        stored = parse_document(layout.text, any_number=not rebuilt)
    except JsonDepthError as error:
        msg = f"the stored index file: {error}"
        raise LayoutLimitError(msg) from error
    except StrictJsonError as error:
        msg = f"the stored index file: {error}"
        raise LayoutError(msg) from error
    if rebuilt:
        if not _has_one_text(stored) or printed(stored) != layout.text:
            msg = "the stored metadata of the index file is not canonical"
            raise LayoutError(msg)
        return _rebuilt_index(stored, weight_map)
    # Whoever loads the rebuilt folder goes where this leads.
    if not isinstance(stored, dict) or stored.get("weight_map") != weight_map:
        msg = "the stored index file does not map exactly the tensors to their files"
        raise LayoutError(msg)
    return layout.text
