"""Invalid sets of files (section 7)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from format_vectors.draft import DELTA
from format_vectors.invalid import Invalid, Parent
from format_vectors.pairs import FEATURE
from rlsparse_store.files.delta_writer import container_header
from rlsparse_store.format.header import frame_header
from rlsparse_store.format.strict_json import canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    from format_vectors.checkpoints import Files, Json


def without_file(name: str) -> Callable[[Parent], Files]:
    """Leave one file out."""
    return lambda parent: {n: f for n, f in parent.files.items() if n != name}


def _relisted(edit: Callable[[Json], object]) -> Callable[[Parent], Files]:
    """Edit the index of shards in place."""

    def make(parent: Parent) -> Files:
        name = DELTA + ".index.json"
        listing = json.loads(parent.files[name])
        edit(listing["weight_map"])
        text = json.dumps(listing, indent=2, sort_keys=True) + "\n"
        return {**parent.files, name: text.encode()}

    return make


def _shard(number: int) -> str:
    return f"delta-{number:05d}-of-00002.safetensors"


LIST: Final = DELTA + ".index.json"


def relist_text(text: bytes) -> Callable[[Parent], Files]:
    """Exchange the index of shards."""
    return lambda parent: {**parent.files, LIST: text}


def relisted_with(member: bytes) -> Callable[[Parent], Files]:
    """Put one more member first in the index of shards."""
    return lambda parent: {**parent.files, LIST: b"{" + member + b"," + parent.files[LIST][1:]}


def with_first_manifest(edit: Callable[[Json], Json]) -> Callable[[Parent], Files]:
    """Edit the manifest of the first of two shards, which the checksum in the second covers."""

    def make(parent: Parent) -> Files:
        file = parent.files[_shard(1)]
        end = 8 + int.from_bytes(file[:8], "little")
        header = json.loads(file[8:end])
        fields = edit(json.loads(header["__metadata__"]["rlsparse"]))
        text = container_header(canonical(fields), 1, len(file) - end, None)
        return {**parent.files, _shard(1): frame_header(text) + file[end:]}

    return make


_unlike_features = with_first_manifest(lambda fields: fields | {"features": [FEATURE]})


_ONE: Final = canonical(
    {
        "weight_map": {
            "data.00001": "delta-00001-of-00001.safetensors",
            "index": "delta-00001-of-00001.safetensors",
        }
    }
)


MISSING: Final = (
    Invalid("missing-file", "missing", "no file of the delta", lambda _: {"notes.txt": b"-\n"}),
    Invalid("missing-shard", "missing", "a shard is not there", without_file(_shard(2)), "shards"),
    Invalid(
        "missing-listing",
        "missing",
        "the index of shards is not there",
        without_file(DELTA + ".index.json"),
        "shards",
    ),
    Invalid(
        "missing-both",
        "missing",
        "a single file and an index of shards",
        lambda parent: {**parent.files, DELTA: parent.files[_shard(2)]},
        "shards",
    ),
    Invalid(
        "listing-other",
        "missing",
        "an index of shards that names another file",
        _relisted(lambda m: m.update({"data.00002": "other.safetensors"})),
        "shards",
    ),
    Invalid(
        "listing-more",
        "missing",
        "an index of shards that names one entry more",
        _relisted(lambda m: m.update({"extra": _shard(2)})),
        "shards",
    ),
    Invalid(
        "listing-less",
        "missing",
        "an index of shards that names one entry less",
        _relisted(lambda m: m.pop("data.00001")),
        "shards",
    ),
    Invalid(
        "listing-key-twice",
        "missing",
        "an index of shards with a key twice",
        lambda parent: {
            **parent.files,
            DELTA + ".index.json": b'{"a":1,"a":2,' + parent.files[DELTA + ".index.json"][1:],
        },
        "shards",
    ),
    Invalid(
        "listing-no-json",
        "missing",
        "an index of shards that is no JSON",
        lambda parent: {**parent.files, DELTA + ".index.json": b"{"},
        "shards",
    ),
    Invalid(
        "shards-swapped",
        "header",
        "two shards under each other's names",
        lambda p: {**p.files, _shard(1): p.files[_shard(2)], _shard(2): p.files[_shard(1)]},
        "shards",
    ),
    Invalid(
        "listing-no-map",
        "missing",
        "an index of shards without weight_map",
        relist_text(b'{"metadata":{}}'),
        "shards",
    ),
    Invalid(
        "listing-map-list",
        "missing",
        "a weight_map that is a list",
        relist_text(b'{"weight_map":[1,2,3]}'),
        "shards",
    ),
    Invalid(
        "listing-array",
        "missing",
        "an index of shards that is no object",
        relist_text(b"[]"),
        "shards",
    ),
    Invalid(
        "listing-one",
        "missing",
        "an index of one shard",
        lambda p: {LIST: _ONE, "delta-00001-of-00001.safetensors": p.files[DELTA]},
        "bitmap",
    ),
    Invalid(
        "listing-none",
        "missing",
        "an index of no shards",
        relist_text(canonical({"weight_map": {"index": "delta-00000-of-00000.safetensors"}})),
        "shards",
    ),
    Invalid(
        "listing-index",
        "missing",
        "an index that is in the first shard",
        _relisted(lambda m: m.update({"index": _shard(1)})),
        "shards",
    ),
    Invalid(
        "listing-path",
        "missing",
        "a shard in another folder",
        _relisted(lambda m: m.update({"data.00001": "../" + _shard(1)})),
        "shards",
    ),
    Invalid(
        "listing-key-escaped",
        "missing",
        "a key twice, once escaped",
        relisted_with(b'"a":1,"\\u0061":2'),
        "shards",
    ),
    Invalid(
        "listing-not-utf8",
        "missing",
        "bytes that are no UTF-8",
        relisted_with(b'"a":"\xff"'),
        "shards",
    ),
    Invalid(
        "listing-mark",
        "missing",
        "a byte-order mark",
        lambda p: {**p.files, LIST: b"\xef\xbb\xbf" + p.files[LIST]},
        "shards",
    ),
    Invalid(
        "listing-surrogate",
        "missing",
        "half a surrogate pair",
        relisted_with(b'"a":["\\ud83d"]'),
        "shards",
    ),
    Invalid(
        "listing-surrogate-key",
        "missing",
        "half a surrogate pair in a key",
        relisted_with(b'"\\udc0d":1'),
        "shards",
    ),
    Invalid(
        "listing-integer",
        "missing",
        "an integer of 20 digits",
        relisted_with(b'"a":10000000000000000000'),
        "shards",
    ),
    Invalid("listing-not-a-number", "missing", "NaN", relisted_with(b'"a":NaN'), "shards"),
    Invalid("listing-comma", "missing", "a comma too many", relisted_with(b'"a":[1,]'), "shards"),
    Invalid(
        "listing-deep",
        "limit",
        "lists nested 33 deep",
        relisted_with(b'"a":' + b"[" * 32 + b"]" * 32),
        "shards",
    ),
    Invalid(
        "features-unlike",
        "header",
        "shards that list unlike features",
        _unlike_features,
        "shards",
        reader={"features": [FEATURE]},
    ),
    Invalid(
        "listing-deeper",
        "limit",
        "lists nested 2,000 deep",
        relisted_with(b'"a":' + b"[" * 2000 + b"]" * 2000),
        "shards",
    ),
    Invalid(
        "order-missing-header",
        "missing",
        "a shard that is not there, and one of no header",
        lambda p: {LIST: p.files[LIST], _shard(1): b""},
        "shards",
    ),
)
