"""Invalid manifests (section 4)."""

from __future__ import annotations

from typing import Final

from format_vectors.invalid import Invalid, resealed, with_manifest
from format_vectors.pairs import nested

MANIFEST: Final = (
    Invalid(
        "manifest-white-space",
        "header",
        "white space in the manifest",
        resealed(text=lambda t: t.replace(b":", b": ", 1)),
    ),
    Invalid(
        "manifest-order",
        "header",
        "keys of the manifest out of order",
        resealed(text=lambda t: b'{"z":1,' + t[1:]),
    ),
    Invalid(
        "manifest-duplicate",
        "header",
        "a key of the manifest twice",
        resealed(text=lambda t: t[:-1] + b"," + t[t.index(b'"tuned"') : -1] + b"}"),
    ),
    Invalid(
        "manifest-array", "header", "a manifest that is no object", resealed(text=lambda _: b"[]")
    ),
    Invalid("manifest-empty", "header", "an empty manifest", resealed(text=lambda _: b"")),
    Invalid("manifest-float", "header", "a fraction", with_manifest(zz=1.5)),
    Invalid("manifest-boolean", "header", "a boolean", with_manifest(zz=True)),
    Invalid("manifest-negative", "header", "a number below 0", with_manifest(zz=-1)),
    Invalid("manifest-large", "header", "a number of 2^53", with_manifest(zz=1 << 53)),
    Invalid("manifest-null", "header", "a null", with_manifest(zz=[None])),
    Invalid("manifest-deep", "header", "33 levels", with_manifest(zz=nested(32))),
    Invalid(
        "manifest-upper-hex",
        "header",
        "a character escaped with upper-case digits",
        resealed(
            manifest=lambda fields: fields | {"zz": "\u00ff"},
            text=lambda t: t.replace(b"u00ff", b"u00FF"),
        ),
    ),
    Invalid(
        "manifest-code-units",
        "header",
        "keys sorted by UTF-16",
        resealed(
            manifest=lambda fields: fields | {"\ufffd": 1, "\U0001f40d": 2},
            text=lambda t: t.replace(
                b'"\\ufffd":1,"\\ud83d\\udc0d":2', b'"\\ud83d\\udc0d":2,"\\ufffd":1'
            ),
        ),
    ),
    Invalid("manifest-no-format", "header", "no `format`", with_manifest(format=None)),
    Invalid(
        "manifest-odd-format", "header", "a `format` that is none", with_manifest(format="1.00")
    ),
    Invalid("manifest-no-features", "header", "no `features`", with_manifest(features=None)),
    Invalid("manifest-no-shard", "header", "no `shard`", with_manifest(shard=None)),
    Invalid(
        "manifest-other-shard", "header", "the number of another shard", with_manifest(shard=2)
    ),
    Invalid("manifest-no-base", "header", "no `base`", with_manifest(base=None)),
    Invalid("manifest-no-tuned", "header", "no `tuned`", with_manifest(tuned=None)),
    Invalid("manifest-no-totals", "header", "no `totals`", with_manifest(totals=None)),
    Invalid(
        "manifest-less-totals",
        "header",
        "`totals` that lacks a key",
        with_manifest(totals={"chunks": 1}),
    ),
    Invalid(
        "manifest-digest",
        "header",
        "a digest of 63 digits",
        with_manifest(tuned={"digest": "0" * 63}),
    ),
    Invalid("manifest-cast", "header", "a `cast` to what is no dtype", with_manifest(cast="BF17")),
    Invalid(
        "manifest-features-order",
        "header",
        "features descending",
        with_manifest(features=["b", "a"]),
    ),
    Invalid("version-major", "version", "another MAJOR", with_manifest(format="2.0")),
    Invalid(
        "feature-unknown", "feature", "a feature that nobody knows", with_manifest(features=["lz9"])
    ),
)
