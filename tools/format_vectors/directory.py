"""Invalid sets of files (section 2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from format_vectors.draft import DELTA
from format_vectors.invalid import Invalid, Parent

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
)
