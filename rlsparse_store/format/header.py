"""The header of a safetensors file, read strictly.

The safetensors library accepts duplicate keys (the last one wins), leading white space and
unknown fields; two readers can then see two different checkpoints in one file. This one accepts
only what has a single meaning. It serves checkpoints and deltas alike.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Final, NamedTuple

from rlsparse_store.format.dtypes import DTYPES, Dtype
from rlsparse_store.format.limits import MAX_DIMENSION, MAX_RANK, MAX_TENSORS
from rlsparse_store.format.names import are_tensor_names
from rlsparse_store.format.strict_json import StrictJsonError, parse

__all__ = [
    "HeaderEntry",
    "HeaderError",
    "HeaderLimitError",
    "ParsedHeader",
    "frame_header",
    "header_text",
    "is_text_mapping",
    "parse_header",
]


_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class HeaderError(ValueError):
    """A header is broken. Callers turn it into their own error, which names the file."""

    def __init__(self, message: str, tensor: str | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


class HeaderLimitError(HeaderError):
    """A header is longer than is accepted."""


class HeaderEntry(NamedTuple):
    """One tensor of a file.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: Its dimensions, in elements.
        start: Offset of its first byte in the data section.
        end: Offset after its last byte.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ParsedHeader:
    """A header: its tensors in the order it names them, and its metadata."""

    entries: list[HeaderEntry]
    metadata: dict[str, str] | None


def frame_header(text: bytes) -> bytes:
    """The leading bytes of a file: length, JSON text, and spaces to a multiple of 8."""
    padded = text + b" " * (-len(text) % 8)
    return struct.pack("<Q", len(padded)) + padded


def parse_header(header: bytes, data_bytes: int) -> ParsedHeader:
    """Parse a header and check that its tensors cover the data section exactly.

    Args:
        header: The JSON text with its padding.
        data_bytes: Length of the data section, from the length of the file.

    Raises:
        HeaderError: Anything has no single meaning, or sizes do not add up.
    """
    if not header.startswith(b"{"):
        msg = "the header does not start with '{'"
        raise HeaderError(msg)
    try:
        fields = parse(header.rstrip(b" "), most_objects=MAX_TENSORS + 2)
    except StrictJsonError as error:
        msg = f"the header is {error}" if str(error).startswith("not") else f"the header: {error}"
        raise HeaderError(msg) from error
    metadata = fields.pop("__metadata__", None)
    if metadata is not None and not is_text_mapping(metadata):
        msg = "__metadata__ does not map texts to texts"
        raise HeaderError(msg)
    if not are_tensor_names(list(fields)):
        msg = "this is not an acceptable tensor name"
        raise HeaderError(msg, next(name for name in fields if not are_tensor_names([name])))
    entries = [_parse_entry(name, field) for name, field in fields.items()]
    _check_cover(entries, data_bytes)
    return ParsedHeader(entries, metadata)


def is_text_mapping(value: object) -> bool:
    """Whether this maps texts to texts, all of which can be written as UTF-8."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        return False
    # A lone surrogate has no UTF-8 form, so it could not be written back.
    return not any(_SURROGATE.search(text) for pair in value.items() for text in pair)


def _is_integers(value: object, most: int) -> bool:
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110 - a generator takes twice as long
        if type(number) is not int or not 0 <= number <= most:
            return False
    return True


_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


def _parse_entry(name: str, field: object) -> HeaderEntry:
    if not isinstance(field, dict) or field.keys() != _FIELDS:
        msg = "its entry does not have exactly dtype, shape and data_offsets"
        raise HeaderError(msg, name)
    dtype = DTYPES.get(field["dtype"]) if isinstance(field["dtype"], str) else None
    if dtype is None:
        msg = f"unknown dtype {str(field['dtype'])[:40]!r}"
        raise HeaderError(msg, name)
    shape, offsets = field["shape"], field["data_offsets"]
    if not _is_integers(shape, MAX_DIMENSION) or len(shape) > MAX_RANK:
        msg = f"its shape is not a list of at most {MAX_RANK} sizes"
        raise HeaderError(msg, name)
    if not _is_integers(offsets, 2**62) or len(offsets) != 2:
        msg = "its data_offsets are not two offsets"
        raise HeaderError(msg, name)
    entry = HeaderEntry(name, dtype, tuple(shape), *offsets)
    nbytes = dtype.nbytes(entry.shape)
    if nbytes is None or nbytes > 8 * MAX_DIMENSION or nbytes != entry.end - entry.start:
        msg = (
            f"{dtype.code} of shape {list(shape)} does not take "
            f"{entry.end - entry.start} bytes, as its data_offsets say"
        )
        raise HeaderError(msg, name)
    return entry


def _check_cover(entries: list[HeaderEntry], data_bytes: int) -> None:
    place = 0
    for entry in sorted(entries, key=lambda e: (e.start, e.end)):
        if entry.start != place:
            msg = f"its data starts at byte {entry.start}, not {place}: a gap or an overlap"
            raise HeaderError(msg, entry.name)
        place = entry.end
    if place != data_bytes:
        msg = f"its tensors take {place} bytes of data, but the file holds {data_bytes}"
        raise HeaderError(msg)


def header_text(entries: list[HeaderEntry], metadata_text: str) -> bytes:
    """The JSON text of a header, as the safetensors library prints it.

    Args:
        entries: In the order they are to be named.
        metadata_text: JSON text of the value of ``__metadata__``, or empty for none.
    """
    parts = [f'"__metadata__":{metadata_text}'] if metadata_text else []
    parts += [
        f"{encode_basestring(name)}:"
        f'{{"dtype":"{dtype.code}","shape":[{",".join(map(str, shape))}],'
        f'"data_offsets":[{start},{end}]}}'
        for name, dtype, shape, start, end in entries
    ]
    return ("{" + ",".join(parts) + "}").encode()
