"""Invalid records of the files of the tuned checkpoint (section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from format_vectors.checkpoints import raw, safetensors
from format_vectors.invalid import Invalid, Parent

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
)
