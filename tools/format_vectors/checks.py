"""Wrong checksums, checks and digests, and bases of another delta (section 11)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from format_vectors.directory import with_first_manifest
from format_vectors.draft import DELTA, unchanged
from format_vectors.invalid import Invalid, Parent, edit_file, with_manifest, with_wrong_check

if TYPE_CHECKING:
    from collections.abc import Callable


def _flipped(place: Callable[[Parent], int]) -> Callable[[Parent], bytes]:
    """Flip a bit of the file without sealing it."""

    def make(parent: Parent) -> bytes:
        file = bytearray(parent.files[DELTA])
        file[place(parent)] ^= 0x10
        return bytes(file)

    return make


def data_start(parent: Parent) -> int:
    """Where the data of a file starts."""
    return 8 + int.from_bytes(parent.files[DELTA][:8], "little")


CHECKSUM: Final = (
    Invalid("checksum-index", "checksum", "a bit of the index's frame", _flipped(lambda _: -1)),
    Invalid(
        "checksum-manifest",
        "checksum",
        "a digit of the manifest",
        edit_file(lambda f: re.sub(rb'(chunks\\":)\d', rb"\g<1>9", f, count=1)),
    ),
    Invalid("checksum-chunk", "checksum", "a bit of a chunk", _flipped(data_start)),
    Invalid(
        "checksum-chunk-check",
        "checksum",
        "a wrong check of a chunk",
        with_wrong_check("b_delta", "check"),
    ),
    Invalid(
        "checksum-first-shard",
        "checksum",
        "a key of the first shard's manifest",
        with_first_manifest(lambda fields: fields | {"zz": 1}),
        "shards",
    ),
)


def _bad_digest(parent: Parent) -> bytes:
    digest = parent.draft.tensor("b_delta").tuned_digest
    return parent.draft.with_tensor("b_delta", tuned_digest=digest[::-1]).sealed()


def _bad_base_digest(parent: Parent) -> bytes:
    digest = parent.draft.tensor("b_delta").base_digest
    return parent.draft.with_tensor("b_delta", base_digest=digest[::-1]).sealed()


RESULTS: Final = (
    Invalid(
        "base-check", "base", "a wrong check of base words", with_wrong_check("b_delta", "base")
    ),
    Invalid("base-digest", "base", "a wrong digest of a source", _bad_base_digest),
    Invalid(
        "base-state",
        "base",
        "a wrong state digest of the base",
        with_manifest(base={"digest": "0" * 64}),
    ),
    Invalid(
        "base-words", "base", "a base of other words", edit_file(unchanged), base="mixed-words"
    ),
    Invalid(
        "base-same",
        "base",
        "a base of other words in an unchanged tensor",
        edit_file(unchanged),
        base="mixed-same",
    ),
    Invalid(
        "base-unused",
        "base",
        "a base of other words in a removed tensor",
        edit_file(unchanged),
        base="mixed-unused",
    ),
    Invalid(
        "base-missing",
        "base",
        "a base without a source",
        edit_file(unchanged),
        base="mixed-missing",
    ),
    Invalid(
        "base-less",
        "base",
        "a base without a removed tensor",
        edit_file(unchanged),
        base="mixed-less",
    ),
    Invalid(
        "base-more",
        "base",
        "a base with a tensor more",
        edit_file(unchanged),
        base="mixed-more",
        codes=("index",),
    ),
    Invalid(
        "base-dtype", "base", "a source of another dtype", edit_file(unchanged), base="mixed-dtype"
    ),
    Invalid(
        "base-short", "base", "a source that is too short", edit_file(unchanged), base="mixed-short"
    ),
    Invalid(
        "result-delta",
        "result",
        "a wrong result of a delta chunk",
        with_wrong_check("b_delta", "result"),
    ),
    Invalid(
        "result-whole",
        "result",
        "a wrong result of a whole chunk",
        with_wrong_check("i_new", "result"),
    ),
    Invalid(
        "result-widened",
        "result",
        "a wrong result of a widened chunk",
        with_wrong_check("f_wide", "result"),
    ),
    Invalid("result-digest", "result", "a wrong digest of a tensor", _bad_digest),
)
