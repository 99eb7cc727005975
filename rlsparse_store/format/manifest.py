"""The manifest: the few facts at the front of a delta (``specs/format.md`` section 9)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from rlsparse_store.errors import (
    FormatError,
    LimitError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.format.names import is_block_name
from rlsparse_store.format.strict_json import (
    JsonDepthError,
    StrictJsonError,
    canonical,
    parse_document,
)

__all__ = [
    "FORMAT_VERSION",
    "BaseDelta",
    "Manifest",
    "Totals",
    "parse_fields",
    "parse_manifest",
    "shard_fields",
]

FORMAT_VERSION: Final = "1.0"
"""The version that this library writes. It reads every version of the same MAJOR."""

KNOWN_FEATURES: Final[frozenset[str]] = frozenset()

_MAJOR: Final = FORMAT_VERSION.partition(".")[0]
_NUMBER: Final = "(0|[1-9][0-9]{0,5})"
_VERSION: Final = re.compile(rf"{_NUMBER}\.{_NUMBER}(-rc\.[1-9][0-9]{{0,5}})?")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

# Hints. None can name a scheme or a host, or a place from the root of a file system.
_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_REPO: Final = re.compile(rf"{_PART}(/{_PART})?")
_REVISION: Final = re.compile(rf"{_PART}(/{_PART}){{0,3}}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_PATH: Final = re.compile(rf"(\.\./){{0,8}}{_PART}(/{_PART}){{0,7}}")
_PATH_IN_REPO: Final = re.compile(rf"{_PART}(/{_PART}){{0,7}}")


@dataclass(frozen=True, slots=True)
class BaseDelta:
    """Hint: the delta whose result the base is. Content decides, as for every hint.

    Attributes:
        path: Its folder, relative to that of the delta with this hint or, with ``repo``, within
            the repository; empty for the top of the repository.
        repo: Its repository on the Hub, if it is not the one that the delta lies in.
        revision: Its commit there.
    """

    path: str = ""
    repo: str | None = None
    revision: str | None = None

    def fields(self) -> dict[str, str]:
        """The object that the manifest holds."""
        found = {"path": self.path or None, "repo": self.repo, "revision": self.revision}
        return {key: value for key, value in found.items() if value is not None}


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
        base_delta: Hint: the delta whose result the base is. ``repo`` and ``revision`` then say
            where that delta's base is.
        cast: Dtype code the tuned checkpoint was rounded to before, if it was.
        version: The format version it was written in.
    """

    base_digest: str
    tuned_digest: str
    totals: Totals
    repo: str | None = None
    revision: str | None = None
    base_delta: BaseDelta | None = None
    cast: str | None = None
    version: str = FORMAT_VERSION

    def text(self, shard: int) -> bytes:
        """The canonical text, for the file with this number."""
        base = {
            "delta": None if self.base_delta is None else self.base_delta.fields(),
            "digest": self.base_digest,
            "repo": self.repo,
            "revision": self.revision,
        }
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
        LimitError: It is nested too deeply.
        UnsupportedVersionError: A version of another MAJOR, or a candidate.
        UnsupportedFeatureError: A feature that is not known here.
    """
    try:
        fields = parse_document(text)
    except JsonDepthError as error:
        msg = f"the manifest: {error}"
        raise LimitError(msg) from error
    except StrictJsonError as error:
        msg = f"the manifest: {error}"
        raise FormatError(msg) from error
    if not isinstance(fields, dict) or not _is_plain(fields) or canonical(fields) != text:
        msg = "the manifest is not canonical JSON of texts and integers"
        raise FormatError(msg)
    _check_version(fields.get("format"))
    _check_features(fields.get("features"))
    if fields.get("shard") != shard:
        msg = f"the manifest says shard {fields.get('shard')}, the file name {shard}"
        raise FormatError(msg)
    return fields


def _is_plain(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) or (type(value) is int and 0 <= value < 2**53)


def _check_version(version: object) -> None:
    found = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if found is None:
        msg = "the manifest has no format version"
        raise FormatError(msg)
    major, _, candidate = found.groups()
    if major == _MAJOR and candidate is None:
        return
    msg = (
        f"format version {found[0]}; this library reads versions {_MAJOR}.x: upgrade "
        "rlsparse-store, or encode the checkpoint again"
    )
    raise UnsupportedVersionError(msg)


def _check_features(features: object) -> None:
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        msg = "the manifest has no list of features"
        raise FormatError(msg)
    if features != sorted(set(features)) or not all(map(is_block_name, features)):
        msg = "the manifest's features are no names in ascending order"
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
    if not (_has_digest(base) and _has_digest(tuned)):
        msg = "the manifest lacks the digest of base or tuned"
        raise FormatError(msg)
    repo, revision = base.get("repo"), base.get("revision")
    if not (_is_hint(repo, _REPO) and _is_hint(revision, _REVISION)):
        msg = "the manifest's hints of the base are no repository and revision"
        raise FormatError(msg)
    cast = fields.get("cast")
    if "cast" in fields and not (isinstance(cast, str) and cast in DTYPES):
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
        repo=repo,
        revision=revision,
        base_delta=_base_delta(base["delta"]) if "delta" in base else None,
        cast=cast,
        version=fields["format"],
    )


def _is_hint(text: object, form: re.Pattern[str]) -> bool:
    return text is None or (isinstance(text, str) and form.fullmatch(text) is not None)


def _base_delta(value: object) -> BaseDelta:
    fields = value if isinstance(value, dict) else {}
    path, repo, revision = (fields.get(key) for key in ("path", "repo", "revision"))
    in_repo = repo is not None
    good = fields.keys() & {"path", "repo", "revision"} in (
        ({"repo", "revision"}, {"path", "repo", "revision"}) if in_repo else ({"path"},)
    )
    good = good and _is_hint(path, _PATH_IN_REPO if in_repo else _PATH)
    if not (good and _is_hint(repo, _REPO) and _is_hint(revision, _COMMIT)):
        msg = "the manifest's hint of the delta whose result the base is leads nowhere"
        raise FormatError(msg)
    return BaseDelta(path or "", repo, revision)


def _has_digest(value: object) -> TypeGuard[dict[str, Any]]:
    digest = value.get("digest") if isinstance(value, dict) else None
    return isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
