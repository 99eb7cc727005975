"""Invalid records of the files of the tuned checkpoint (section 12)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from format_vectors.checkpoints import raw, safetensors
from format_vectors.invalid import Invalid, Parent
from format_vectors.pairs import nested
from rlsparse_store.format.strict_json import printed

if TYPE_CHECKING:
    from collections.abc import Callable


def header_of(nbytes: int) -> bytes:
    """The header of a file of one tensor."""
    return safetensors({"a": raw("other", "U8", nbytes)})[8:-nbytes]


def with_files(**changes: object) -> Callable[[Parent], bytes]:
    """Exchange fields of the record of files."""
    return lambda parent: parent.draft.with_files(**changes).sealed()


def with_file(**changes: Any) -> Callable[[Parent], bytes]:  # noqa: ANN401 - of any field
    """Exchange fields of the record of the only file."""
    return lambda p: p.draft.with_files(
        files=[p.draft.index.files.files[0]._replace(**changes)]
    ).sealed()


def _renamed_files(first: str, second: str) -> Callable[[Parent], bytes]:
    """Give two files other names."""

    def make(parent: Parent) -> bytes:
        one, two = parent.draft.index.files.files
        files = [one._replace(name=first), two._replace(name=second)]
        return parent.draft.with_files(files=files).sealed()

    return make


def _verbatim(edit: Callable[[bytes], bytes]) -> Callable[[Parent], bytes]:
    """Edit the header that is kept verbatim."""

    def make(parent: Parent) -> bytes:
        (file,) = parent.draft.index.files.files
        edited = edit(file.text)
        if edited == file.text:
            msg = "nothing of the header was edited"
            raise ValueError(msg)
        return parent.draft.with_files(files=[file._replace(text=edited)]).sealed()

    return make


def _listing(changes: dict[str, str | None]) -> Callable[[Parent], bytes]:
    """Edit the map of the index file; ``None`` takes a tensor away."""

    def make(parent: Parent) -> bytes:
        listing = json.loads(parent.draft.index.files.index_text)
        merged = listing["weight_map"] | changes
        listing["weight_map"] = {name: file for name, file in merged.items() if file}
        return parent.draft.with_files(index_text=json.dumps(listing).encode()).sealed()

    return make


def _listing_with(member: bytes) -> Callable[[Parent], bytes]:
    """Put one more member first in the index file."""
    return lambda p: p.draft.with_files(
        index_text=b"{" + member + b"," + p.draft.index.files.index_text[1:]
    ).sealed()


FILES: Final = (
    Invalid(
        "file-path", "index", "a file name with a path", with_file(name="../model.safetensors")
    ),
    Invalid("file-suffix", "index", "a file name that ends otherwise", with_file(name="model.bin")),
    Invalid(
        "file-dot", "index", "a file name that starts with a dot", with_file(name=".safetensors")
    ),
    Invalid(
        "file-of-tensor", "index", "a tensor in no file", with_files(file_of=[0, 0, 0, 0, 0, 0, 1])
    ),
    Invalid("file-layout", "index", "an unknown layout", with_file(layout=3)),
    Invalid(
        "file-layout-text",
        "index",
        "an unknown layout with a header",
        with_file(layout=3),
        "verbatim",
    ),
    Invalid("file-text-no-json", "index", "metadata that is no JSON", with_file(text=b'{"a":')),
    Invalid(
        "file-text-not-utf8", "index", "metadata that is no UTF-8", with_file(text=b'{"a":"\xff"}')
    ),
    Invalid("file-text-number", "index", "metadata that is no string", with_file(text=b'{"a":1}')),
    Invalid("file-text-more", "index", "metadata that adds an entry", with_file(text=b'{},"x":{}')),
    Invalid(
        "file-verbatim-other",
        "index",
        "a verbatim header of other tensors",
        with_file(layout=2, text=header_of(1232)),
    ),
    Invalid(
        "file-verbatim-empty", "index", "an empty verbatim header", with_file(layout=2, text=b"")
    ),
    Invalid(
        "listing-layout",
        "index",
        "an unknown layout of the index file",
        with_files(index_layout=3),
        "files-verbatim",
    ),
    Invalid(
        "listing-text",
        "index",
        "a text of an index file there is not",
        with_files(index_text=b"{}"),
    ),
    Invalid(
        "listing-text-no-json",
        "index",
        "metadata of the index file that is no JSON",
        with_files(index_layout=1, index_text=b"{"),
    ),
    Invalid(
        "listing-text-print",
        "index",
        "metadata of the index file that Python prints otherwise",
        with_files(index_layout=1, index_text=b'{"a":1}'),
    ),
    Invalid(
        "file-device", "index", "a file name that is a device", with_file(name="con.safetensors")
    ),
    Invalid(
        "file-device-number",
        "index",
        "a file name that is a numbered device",
        with_file(name="LPT1.x.safetensors"),
    ),
    Invalid("file-space", "index", "a file name with a space", with_file(name="a b.safetensors")),
    Invalid(
        "file-dash",
        "index",
        "a file name that starts with a dash",
        with_file(name="-a.safetensors"),
    ),
    Invalid(
        "file-long",
        "index",
        "a file name of 182 characters",
        with_file(name="a" * 170 + ".safetensors"),
    ),
    Invalid(
        "file-not-ascii",
        "index",
        "a file name that is not ASCII",
        with_file(name="\u00e9.safetensors"),
    ),
    Invalid(
        "file-case",
        "index",
        "file names that differ by case only",
        _renamed_files("A.safetensors", "a.safetensors"),
        "files-rebuilt",
    ),
    Invalid(
        "file-order",
        "index",
        "file names out of order",
        _renamed_files("b.safetensors", "a.safetensors"),
        "files-rebuilt",
    ),
    Invalid(
        "file-text-space", "index", "white space before the metadata", with_file(text=b' {"a":"b"}')
    ),
    Invalid(
        "file-text-space-after",
        "index",
        "white space after the metadata",
        with_file(text=b'{"a":"b"} '),
    ),
    Invalid("file-text-array", "index", "metadata that is no object", with_file(text=b"[]")),
    Invalid(
        "file-text-surrogate",
        "index",
        "half a surrogate pair in the metadata",
        with_file(text=b'{"a":"\\ud83d"}'),
    ),
    Invalid(
        "file-text-twice",
        "index",
        "a key of the metadata twice, once escaped",
        with_file(text=b'{"a":"","\\u0061":""}'),
    ),
    Invalid(
        "file-text-deep",
        "limit",
        "metadata nested 33 deep",
        with_file(text=b'{"a":' + b"[" * 32 + b"]" * 32 + b"}"),
        codes=("index",),
    ),
    Invalid(
        "verbatim-dtype",
        "index",
        "a verbatim header of another dtype",
        _verbatim(lambda h: h.replace(b"BF16", b"F16", 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-shape",
        "index",
        "a verbatim header of another shape",
        _verbatim(lambda h: h.replace(b"[9,5]", b"[5,9]", 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-name",
        "index",
        "a verbatim header of another name",
        _verbatim(lambda h: h.replace(b'"a":{', b'"d":{', 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-missing",
        "index",
        "a verbatim header that lacks a tensor",
        _verbatim(lambda h: re.sub(rb',"a":\{[^}]*\}', b"", h)),
        "verbatim",
    ),
    Invalid(
        "verbatim-gap",
        "index",
        "a verbatim header with a gap",
        _verbatim(lambda h: h.replace(b"[180,270]", b"[182,272]")),
        "verbatim",
    ),
    Invalid(
        "verbatim-overlap",
        "index",
        "a verbatim header with an overlap",
        _verbatim(lambda h: h.replace(b"[180,270]", b"[90,180]")),
        "verbatim",
    ),
    Invalid(
        "verbatim-length",
        "index",
        "a verbatim header with data of another length",
        _verbatim(lambda h: h.replace(b"[180,270]", b"[180,272]")),
        "verbatim",
    ),
    Invalid(
        "verbatim-more",
        "index",
        "a verbatim header with another field",
        _verbatim(lambda h: h.replace(b'"dtype"', b'"x":1,"dtype"', 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-space",
        "index",
        "a verbatim header that starts with a space",
        _verbatim(lambda h: b" " + h),
        "verbatim",
    ),
    Invalid(
        "verbatim-metadata",
        "index",
        "a verbatim header with a number in its metadata",
        _verbatim(lambda h: h.replace(b'"z":"1"', b'"z":1')),
        "verbatim",
    ),
    Invalid(
        "verbatim-metadata-list",
        "index",
        "a verbatim header whose metadata is a list",
        _verbatim(lambda h: re.sub(rb'"__metadata__":\{[^}]*\}', b'"__metadata__":[]', h)),
        "verbatim",
    ),
    Invalid(
        "verbatim-tensor-list",
        "index",
        "a verbatim header that describes a tensor by a list",
        _verbatim(lambda h: re.sub(rb'"a":\{[^}]*\}', b'"a":[]', h)),
        "verbatim",
    ),
    Invalid(
        "verbatim-dtype-list",
        "index",
        "a verbatim header with a list of a dtype",
        _verbatim(lambda h: h.replace(b'"BF16"', b'["BF16"]', 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-shape-text",
        "index",
        "a verbatim header with a shape in quotes",
        _verbatim(lambda h: h.replace(b"[9,5]", b'"95"', 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-twice",
        "index",
        "a verbatim header with a tensor twice",
        _verbatim(lambda h: re.sub(rb'("c":\{[^}]*\})', rb"\1,\1", h)),
        "verbatim",
    ),
    Invalid(
        "verbatim-array",
        "index",
        "a verbatim header that is no object",
        _verbatim(lambda _: b"[]"),
        "verbatim",
    ),
    Invalid(
        "verbatim-dtype-unknown",
        "index",
        "a verbatim header of an unknown dtype",
        _verbatim(lambda h: h.replace(b"BF16", b"BF17", 1)),
        "verbatim",
    ),
    Invalid(
        "verbatim-offsets",
        "index",
        "a verbatim header with three offsets",
        _verbatim(lambda h: h.replace(b"[180,270]", b"[180,270,270]")),
        "verbatim",
    ),
    Invalid(
        "verbatim-offset-text",
        "index",
        "a verbatim header with an offset in quotes",
        _verbatim(lambda h: h.replace(b"[180,270]", b'[180,"270"]')),
        "verbatim",
    ),
    Invalid(
        "listing-verbatim-path",
        "index",
        "an index file that leads out of its folder",
        _listing({"ghost": "../../evil.safetensors"}),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-more",
        "index",
        "an index file that names a tensor more",
        _listing({"z": "model-00001-of-00002.safetensors"}),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-other",
        "index",
        "an index file that names another file",
        _listing({"a": "model-00002-of-00002.safetensors"}),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-less",
        "index",
        "an index file that lacks a tensor",
        _listing({"a": None}),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-empty",
        "index",
        "an index file that names nothing",
        _listing({"a": None, "b": None, "c": None}),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-no-map",
        "index",
        "an index file without weight_map",
        with_files(index_text=b"{}"),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-array",
        "index",
        "an index file that is no object",
        with_files(index_text=b"[]"),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-twice",
        "index",
        "an index file with a key twice, once escaped",
        _listing_with(b'"a":1,"\\u0061":2'),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-surrogate",
        "index",
        "an index file with half a surrogate pair",
        _listing_with(b'"a":"\\ud83d"'),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-infinity",
        "index",
        "an index file with a number that is none",
        _listing_with(b'"a":Infinity'),
        "files-verbatim",
    ),
    Invalid(
        "listing-verbatim-deep",
        "limit",
        "an index file nested 33 deep",
        _listing_with(b'"a":' + b"[" * 32 + b"]" * 32),
        "files-verbatim",
    ),
    Invalid(
        "listing-text-null",
        "index",
        "metadata of the index file with null",
        with_files(index_text=b'{\n  "a": null\n}'),
        "files-rebuilt",
    ),
    Invalid(
        "listing-text-float",
        "index",
        "metadata of the index file with a fraction",
        with_files(index_text=b'{\n  "a": 0.5\n}'),
        "files-rebuilt",
    ),
    Invalid(
        "listing-text-deep",
        "limit",
        "metadata of the index file nested 33 deep",
        with_files(index_text=printed(nested(33))),
        "files-rebuilt",
    ),
    Invalid(
        "verbatim-shift",
        "index",
        "a verbatim header whose tensors are longer and shorter than they are",
        _verbatim(lambda h: h.replace(b"[0,90]", b"[0,92]").replace(b"[90,180]", b"[92,180]")),
        "verbatim",
    ),
    Invalid(
        "verbatim-overlap-gap",
        "index",
        "a verbatim header with an overlap and a gap as long",
        _verbatim(lambda h: h.replace(b"[90,180]", b"[0,90]")),
        "verbatim",
    ),
)
