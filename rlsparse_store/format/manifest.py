"""The manifest: the few facts at the front of a delta (``specs/format.md`` section 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from rlsparse_store.errors import FormatError, UnsupportedFeatureError, UnsupportedVersionError
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.strict_json import StrictJsonError, canonical, parse

__all__ = [
    "FORMAT_VERSION",
    "Manifest",
    "Totals",
    "parse_fields",
    "parse_manifest",
    "shard_fields",
]

FORMAT_VERSION: Final = "1.0"
KNOWN_FEATURES: Final[frozenset[str]] = frozenset()

MAX_DEPTH: Final = 32
"""Objects and lists of a manifest within each other."""

_VERSION: Final = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the index, so that the front of a file tells them.

    Attributes:
        tensors: Tensors of the tuned checkpoint.
        elements: Their words.
        changed: Words that differ from their source's.
        chunks: Chunks.
        tuned_bytes: Bytes of their data.
    """

    tensors: int
    elements: int
    changed: int
    chunks: int
    tuned_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the file with the index says of the delta.

    Attributes:
        base_digest: State digest of the base.
        tuned_digest: State digest of the tuned checkpoint.
        totals: Sums over the index.
        repo: Hint: the base's repository on the Hub.
        revision: Hint: the base's commit.
        cast: Dtype code the tuned checkpoint was rounded to before, if it was.
        version: The format version it was written in.
    """

    base_digest: str
    tuned_digest: str
    totals: Totals
    repo: str | None = None
    revision: str | None = None
    cast: str | None = None
    version: str = FORMAT_VERSION

    def text(self, shard: int) -> bytes:
        """The canonical text, for the file with this number."""
        base = {"digest": self.base_digest, "repo": self.repo, "revision": self.revision}
        totals = {name: getattr(self.totals, name) for name in Totals.__slots__}
        full: dict[str, Any] = {
            **shard_fields(shard),
            "base": {key: value for key, value in base.items() if value is not None},
            "tuned": {"digest": self.tuned_digest},
            "totals": totals,
        }
        if self.cast is not None:
            full["cast"] = self.cast
        return canonical(full)


def shard_fields(shard: int) -> dict[str, Any]:
    """What every file of a delta says."""
    return {"features": [], "format": FORMAT_VERSION, "shard": shard}


def parse_fields(text: bytes, shard: int) -> dict[str, Any]:
    """Parse a manifest and check what every file must say.

    Args:
        text: The manifest.
        shard: The number its file must have.

    Raises:
        FormatError: It is not canonical, or lacks something.
        UnsupportedVersionError: Another major version.
        UnsupportedFeatureError: A feature that is not known here.
    """
    try:
        fields = parse(text, most_objects=len(text))
        # In this order: what is nested deeply has no canonical text here.
        is_canonical = _is_plain(fields, MAX_DEPTH) and canonical(fields) == text
    except (StrictJsonError, UnicodeEncodeError) as error:
        msg = f"the manifest: {error}"
        raise FormatError(msg) from error
    if not is_canonical or not isinstance(fields, dict):
        msg = "the manifest is not canonical JSON of texts and integers"
        raise FormatError(msg)
    _check_version(fields.get("format"))
    _check_features(fields.get("features"))
    if fields.get("shard") != shard:
        msg = f"the manifest says shard {fields.get('shard')}, the file name {shard}"
        raise FormatError(msg)
    return fields


def _is_plain(value: object, depth: int) -> bool:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(part, depth - 1) for part in parts)
    return isinstance(value, str) or (type(value) is int and 0 <= value < 2**53)


def _check_version(version: object) -> None:
    found = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if found is None:
        msg = "the manifest has no format version"
        raise FormatError(msg)
    if found[1] != FORMAT_VERSION.partition(".")[0]:
        msg = (
            f"format version {found[0]}; this library reads version "
            f"{FORMAT_VERSION.partition('.')[0]}: upgrade rlsparse-store"
        )
        raise UnsupportedVersionError(msg)


def _check_features(features: object) -> None:
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        msg = "the manifest has no list of features"
        raise FormatError(msg)
    if features != sorted(set(features)):
        msg = "the manifest's features are not in ascending order"
        raise FormatError(msg)
    unknown = [f for f in features if f not in KNOWN_FEATURES]
    if unknown:
        msg = f"needs the unknown feature {unknown[0][:80]!r}: upgrade rlsparse-store"
        raise UnsupportedFeatureError(msg)


def parse_manifest(text: bytes, shard: int) -> Manifest:
    """Parse the manifest of the file with the index.

    Raises:
        FormatError: As :func:`parse_fields`.
    """
    fields = parse_fields(text, shard)
    base, tuned = fields.get("base"), fields.get("tuned")
    if base is None or tuned is None or not (_has_digest(base) and _has_digest(tuned)):
        msg = "the manifest lacks the digest of base or tuned"
        raise FormatError(msg)
    texts = (base.get("repo"), base.get("revision"), fields.get("cast"))
    if not all(text is None or isinstance(text, str) for text in texts):
        msg = "the manifest's repo, revision or cast is no text"
        raise FormatError(msg)
    if texts[2] is not None and texts[2] not in DTYPES:
        msg = "the manifest's cast is no dtype"
        raise FormatError(msg)
    totals = fields.get("totals")
    if not isinstance(totals, dict) or not all(
        type(totals.get(name)) is int for name in Totals.__slots__
    ):
        msg = "the manifest lacks its totals"
        raise FormatError(msg)
    return Manifest(
        base_digest=base["digest"],
        tuned_digest=tuned["digest"],
        totals=Totals(**{name: totals[name] for name in Totals.__slots__}),
        repo=texts[0],
        revision=texts[1],
        cast=texts[2],
        version=fields["format"],
    )


def _has_digest(value: Any) -> bool:  # noqa: ANN401 - JSON has no one type
    digest = value.get("digest") if isinstance(value, dict) else None
    return isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
