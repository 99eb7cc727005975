"""Invalid manifests (section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from format_vectors.checkpoints import COMMIT
from format_vectors.invalid import Invalid, Parent, resealed, with_manifest
from format_vectors.pairs import nested

if TYPE_CHECKING:
    from collections.abc import Callable


def with_base(**hints: object) -> Callable[[Parent], bytes]:
    """Exchange hints of the base."""
    return resealed(manifest=lambda fields: fields | {"base": fields["base"] | hints})


def with_totals(**changes: object) -> Callable[[Parent], bytes]:
    """Exchange totals, which stay as many."""
    return resealed(manifest=lambda fields: fields | {"totals": fields["totals"] | changes})


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
    Invalid("manifest-deep", "limit", "33 levels", with_manifest(zz=nested(32))),
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
    Invalid("version-before", "version", "the MAJOR before", with_manifest(format="0.9")),
    Invalid("version-candidate", "version", "a candidate of 1.0", with_manifest(format="1.0-rc.1")),
    Invalid(
        "version-candidate-next", "version", "a later candidate", with_manifest(format="1.1-rc.2")
    ),
    Invalid(
        "version-major-digits", "version", "a MAJOR that starts alike", with_manifest(format="10.0")
    ),
    Invalid(
        "version-major-rc",
        "version",
        "the candidate of another MAJOR",
        with_manifest(format="2.0-rc.1"),
    ),
    Invalid(
        "manifest-format-long",
        "header",
        "a version of seven digits",
        with_manifest(format="1.1000000"),
    ),
    Invalid(
        "manifest-format-suffix",
        "header",
        "a version with more behind it",
        with_manifest(format="1.0-rc.1 "),
    ),
    Invalid(
        "manifest-format-number", "header", "a version that is a number", with_manifest(format=1)
    ),
    Invalid(
        "manifest-features-type", "header", "features that are no list", with_manifest(features="")
    ),
    Invalid(
        "manifest-features-item",
        "header",
        "a feature that is a number",
        with_manifest(features=[1]),
    ),
    Invalid(
        "manifest-features-name",
        "header",
        "a feature in upper case",
        with_manifest(features=["Test"]),
    ),
    Invalid(
        "manifest-features-twice", "header", "a feature twice", with_manifest(features=["a", "a"])
    ),
    Invalid(
        "manifest-shard-type", "header", "a number of a shard in quotes", with_manifest(shard="1")
    ),
    Invalid(
        "manifest-base-type", "header", "a `base` that is no object", with_manifest(base="0" * 64)
    ),
    Invalid(
        "manifest-base-digest",
        "header",
        "a digest of the base in upper case",
        with_manifest(base={"digest": "A" * 64}),
    ),
    Invalid(
        "manifest-digest-long",
        "header",
        "a digest of 65 digits",
        with_manifest(tuned={"digest": "0" * 65}),
    ),
    Invalid(
        "manifest-totals-type", "header", "`totals` that are no object", with_manifest(totals=[1])
    ),
    Invalid(
        "manifest-totals-text", "header", "a total that is no integer", with_totals(chunks="1")
    ),
    Invalid(
        "manifest-cast-type", "header", "a `cast` that is no string", with_manifest(cast=["BF16"])
    ),
    Invalid("manifest-surrogate", "header", "half a surrogate pair", with_manifest(zz="\ud800")),
    Invalid(
        "manifest-surrogate-key",
        "header",
        "half a surrogate pair in a key",
        with_manifest(zz={"\udc00": 1}),
    ),
    Invalid(
        "manifest-slash",
        "header",
        "a solidus escaped",
        resealed(manifest=lambda m: m | {"zz": "/"}, text=lambda t: t.replace(b'"/"', b'"\\/"')),
    ),
    Invalid(
        "manifest-tab",
        "header",
        "a tab as \\u0009",
        resealed(
            manifest=lambda m: m | {"zz": "\t"}, text=lambda t: t.replace(b'"\\t"', b'"\\u0009"')
        ),
    ),
    Invalid("manifest-integer", "header", "an integer of 20 digits", with_manifest(zz=10**19)),
    Invalid("manifest-not-a-number", "header", "NaN", with_manifest(zz=float("nan"))),
    Invalid("base-repo", "header", "a `repo` that is no string", with_base(repo=1)),
    Invalid(
        "base-repo-scheme",
        "header",
        "a `repo` that names a host",
        with_base(repo="https://example.org/a"),
    ),
    Invalid("base-repo-parts", "header", "a `repo` of three parts", with_base(repo="a/b/c")),
    Invalid("base-revision", "header", "a `revision` that is no string", with_base(revision=1)),
    Invalid(
        "base-revision-up",
        "header",
        "a `revision` that leads elsewhere",
        with_base(revision="../main"),
    ),
    Invalid("base-delta-type", "header", "a `delta` that is no object", with_base(delta="../a")),
    Invalid(
        "base-delta-empty", "header", "a `delta` without path and repository", with_base(delta={})
    ),
    Invalid("base-delta-number", "header", "a path that is a number", with_base(delta={"path": 1})),
    Invalid(
        "base-delta-absolute", "header", "an absolute path", with_base(delta={"path": "/runs/a"})
    ),
    Invalid(
        "base-delta-drive", "header", "a path with a drive", with_base(delta={"path": "C:/runs/a"})
    ),
    Invalid(
        "base-delta-scheme",
        "header",
        "a path with a scheme",
        with_base(delta={"path": "s3://runs/a"}),
    ),
    Invalid(
        "base-delta-backslash",
        "header",
        "a path with a backslash",
        with_base(delta={"path": "..\\a"}),
    ),
    Invalid(
        "base-delta-up-later",
        "header",
        "a path that goes up after a name",
        with_base(delta={"path": "a/../../b"}),
    ),
    Invalid(
        "base-delta-up-only", "header", "a path without a name", with_base(delta={"path": "../"})
    ),
    Invalid(
        "base-delta-up-far",
        "header",
        "a path that goes up nine times",
        with_base(delta={"path": "../" * 9 + "a"}),
    ),
    Invalid(
        "base-delta-deep",
        "header",
        "a path of nine names",
        with_base(delta={"path": "a/" * 8 + "a"}),
    ),
    Invalid(
        "base-delta-branch",
        "header",
        "a repository at a branch",
        with_base(delta={"repo": "a/b", "revision": "main"}),
    ),
    Invalid(
        "base-delta-no-commit",
        "header",
        "a repository without a commit",
        with_base(delta={"repo": "a/b", "path": "a"}),
    ),
    Invalid(
        "base-delta-no-repo",
        "header",
        "a commit without a repository",
        with_base(delta={"revision": COMMIT, "path": "a"}),
    ),
    Invalid(
        "base-delta-host",
        "header",
        "a repository on a host",
        with_base(delta={"repo": "https://a/b", "revision": COMMIT}),
    ),
    Invalid(
        "base-delta-repo-up",
        "header",
        "a path that leaves its repository",
        with_base(delta={"repo": "a/b", "revision": COMMIT, "path": "../a"}),
    ),
)
