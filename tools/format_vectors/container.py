"""Invalid containers (section 8)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from format_vectors.draft import DELTA
from format_vectors.invalid import Invalid, Parent, edit_file, resealed
from rlsparse_store.format.header import frame_header

if TYPE_CHECKING:
    from format_vectors.checkpoints import Files


def _relength(file: bytes, add: int) -> bytes:
    return (int.from_bytes(file[:8], "little") + add).to_bytes(8, "little") + file[8:]


def _odd_padding(file: bytes) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    return _relength(file[:end] + b" " + file[end:], 1)


def _zero_padding(file: bytes) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    return _relength(file[:end] + bytes(8) + file[end:], 8)


def _leading_space(file: bytes) -> bytes:
    return _relength(file[:8] + b" " * 8 + file[8:], 8)


def _negative_shape(parent: Parent) -> bytes:
    """A data entry of -8 bytes, in a file that is as long as its header then says."""
    packed = parent.files[DELTA]
    end = 8 + int.from_bytes(packed[:8], "little")
    text = json.loads(packed[8:end])
    size = text["index"]["shape"][0]
    text["data.00001"] |= {"shape": [-8], "data_offsets": [0, -8]}
    text["index"]["data_offsets"] = [-8, size - 8]
    header = frame_header(json.dumps(text, separators=(",", ":")).encode())
    return header + packed[-size:-8]


def _negative_index(parent: Parent) -> bytes:
    """An index entry of -8 bytes, in a file that is as long as its header then says."""
    packed = parent.files[DELTA]
    end = 8 + int.from_bytes(packed[:8], "little")
    text = json.loads(packed[8:end])
    size = len(packed) - end + 8
    text["data.00001"] |= {"shape": [size], "data_offsets": [0, size]}
    text["index"] |= {"shape": [-8], "data_offsets": [size, size - 8]}
    return frame_header(json.dumps(text, separators=(",", ":")).encode()) + packed[end:]


def _nested_shape(parent: Parent) -> Files:
    """The first of two shards with a list around the size of its data."""
    name = next(name for name in parent.files if name.startswith("delta-00001"))
    file = parent.files[name]
    end = 8 + int.from_bytes(file[:8], "little")
    header = file[8:end].rstrip(b" ")
    size = b"%d" % (len(file) - end)
    old = b'"shape":[%s],"data_offsets":[0,%s]' % (size, size)
    header = header.replace(old, b'"shape":[[%s]],"data_offsets":[0,[%s]]' % (size, size))
    return {**parent.files, name: frame_header(header) + file[end:]}


HEADER: Final = (
    Invalid(
        "header-none", "header", "a file shorter than its length field", edit_file(lambda f: f[:5])
    ),
    Invalid(
        "header-length-beyond",
        "header",
        "a header longer than the file",
        edit_file(lambda f: (len(f) // 8 * 8 + 80).to_bytes(8, "little") + f[8:]),
    ),
    Invalid(
        "header-length-short",
        "header",
        "a header length that cuts the JSON text",
        edit_file(lambda f: (200).to_bytes(8, "little") + f[8:]),
    ),
    Invalid(
        "header-unaligned", "header", "a length that is no multiple of 8", edit_file(_odd_padding)
    ),
    Invalid("header-padding", "header", "padding that is no spaces", edit_file(_zero_padding)),
    Invalid(
        "header-leading-space", "header", "white space at the start", edit_file(_leading_space)
    ),
    Invalid(
        "header-file-longer", "header", "bytes after the last entry", edit_file(lambda f: f + b"\0")
    ),
    Invalid("header-file-shorter", "header", "a file that is cut", edit_file(lambda f: f[:-1])),
    Invalid(
        "header-white-space",
        "header",
        "white space in the JSON text",
        resealed(header=lambda h: h.replace(b'"index":{', b'"index": {')),
    ),
    Invalid(
        "header-duplicate-key",
        "header",
        "a key twice",
        resealed(header=lambda h: h.replace(b'"index":{', b'"index":{"dtype":"U8",')),
    ),
    Invalid(
        "header-duplicate-entry",
        "header",
        "an entry twice",
        resealed(header=lambda h: h[:-1] + h[h.index(b',"index"') :]),
    ),
    Invalid(
        "header-more-metadata",
        "header",
        "another key in __metadata__",
        resealed(header=lambda h: h.replace(b'"},"data', b'","x":"y"},"data')),
    ),
    Invalid(
        "header-dtype",
        "header",
        "an entry of another dtype",
        resealed(header=lambda h: h.replace(b'"U8"', b'"I8"')),
    ),
    Invalid(
        "header-entry-name",
        "header",
        "an entry with the number of another shard",
        resealed(header=lambda h: h.replace(b"data.00001", b"data.00002")),
    ),
    Invalid(
        "header-no-index",
        "header",
        "a single file without an index entry",
        resealed(header=lambda h: h[: h.index(b',"index"')] + b"}"),
    ),
    Invalid(
        "header-escape",
        "header",
        "a character escaped that need not be",
        resealed(header=lambda h: h.replace(b"digest", b"\\u0064igest", 1)),
    ),
    Invalid(
        "header-gap",
        "header",
        "entries that are not adjacent",
        resealed(header=lambda h: h.replace(b'"data_offsets":[0,', b'"data_offsets":[1,')),
    ),
    Invalid(
        "header-longer-text",
        "header",
        "an entry more",
        resealed(
            header=lambda h: h[:-1] + b',"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
    ),
    Invalid(
        "header-no-data",
        "header",
        "no data entry",
        resealed(header=lambda h: h.replace(b"data.00001", b"date.00001")),
    ),
    Invalid(
        "header-no-metadata",
        "header",
        "no manifest",
        resealed(header=lambda h: h.replace(b'"rlsparse"', b'"rlsparsf"')),
    ),
    Invalid(
        "header-metadata-number",
        "header",
        "a manifest that is no string",
        resealed(
            header=lambda h: b'{"__metadata__":{"rlsparse":1}' + h[h.index(b'},"data.') + 1 :]
        ),
    ),
    Invalid("header-array", "header", "a header that is a list", resealed(header=lambda _: b"[]")),
    Invalid(
        "header-shape-text",
        "header",
        "a shape in quotes",
        resealed(header=lambda h: re.sub(rb'"shape":\[(\d+)\]', rb'"shape":["\1"]', h, count=1)),
    ),
    Invalid(
        "header-shape-two",
        "header",
        "a shape of two dimensions",
        resealed(header=lambda h: re.sub(rb'"shape":\[(\d+)\]', rb'"shape":[\1,1]', h, count=1)),
    ),
    Invalid(
        "header-shape-none",
        "header",
        "a shape of no dimension",
        resealed(header=lambda h: re.sub(rb'"shape":\[(\d+)\]', b'"shape":[]', h, count=1)),
    ),
    Invalid(
        "header-shape-true",
        "header",
        "a shape that is a boolean",
        resealed(header=lambda h: re.sub(rb'"shape":\[(\d+)\]', b'"shape":[true]', h, count=1)),
    ),
    Invalid(
        "header-trailing", "header", "text after the JSON", resealed(header=lambda h: h + b"{}")
    ),
    Invalid(
        "header-not-utf8",
        "header",
        "a header that is no UTF-8",
        resealed(header=lambda h: h.replace(b'"U8"', b'"\xff8"', 1)),
    ),
    Invalid(
        "header-deep",
        "limit",
        "a header nested 33 deep",
        resealed(header=lambda h: h[:-1] + b',"x":' + b"[" * 32 + b"]" * 32 + b"}"),
        codes=("header",),
    ),
    Invalid("header-shape-negative", "header", "a shape below 0", _negative_shape),
    Invalid("header-index-negative", "header", "an index of less than 0 bytes", _negative_index),
    Invalid("header-shape-list", "header", "a shape of a list", _nested_shape, "shards"),
)
