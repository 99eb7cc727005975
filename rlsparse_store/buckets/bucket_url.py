"""URLs of places in object storage.

``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, and ``hf://buckets/ORG/NAME/PREFIX`` for reading.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from rlsparse_store.errors import NotFoundError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["HUB_SCHEME", "BucketUrl", "check_key", "is_key", "parse_bucket_url"]

SCHEMES: Final = ("s3", "gs")

HUB_SCHEME: Final = "hf"
"""The scheme of buckets on the Hub, whose names begin with ``buckets/``."""

_FOREIGN: Final = ("az", "abfs", "abfss", "azure", "adl", "s3a", "s3n", "gcs")
"""Schemes that other tools have for object storage."""

_URL: Final = re.compile(rf"({'|'.join((*SCHEMES, *_FOREIGN))})://(.*)", re.DOTALL)
_HUB: Final = re.compile(r"hf://(buckets(?:/.*)?)", re.DOTALL)
_HUB_BUCKET: Final = re.compile(
    r"(buckets/[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/(.*))?", re.ASCII | re.DOTALL
)
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]", re.ASCII)
# No character that means something in a URL, in a shell's pattern or in a path of some system.
_PART: Final = re.compile(r"[\w.=@+,-]{1,255}", re.ASCII)

MAX_KEY_BYTES: Final = 1024
"""Bytes of the longest key of an object, in S3 and in GCS."""


class BucketUrl(NamedTuple):
    """A place in object storage: a bucket, or the objects whose keys begin with a prefix.

    Attributes:
        scheme: ``s3``, ``gs`` or ``hf``.
        bucket: Name of the bucket; ``buckets/ORG/NAME`` on the Hub.
        prefix: Parts of keys, separated by slashes; empty for the bucket itself.
    """

    scheme: str
    bucket: str
    prefix: str = ""

    def __truediv__(self, name: str) -> BucketUrl:
        """Return the place of a name, or of several separated by slashes, below this one.

        Raises:
            NotFoundError: It is not a plain name.
        """
        check_key(name, str(self))
        return self._replace(prefix=f"{self.prefix}/{name}" if self.prefix else name)

    def is_within(self, other: BucketUrl) -> bool:
        """Whether this is another place, or below it.

        Example:
            >>> runs = BucketUrl("s3", "bucket", "runs")
            >>> (runs / "qwen").is_within(runs), BucketUrl("s3", "bucket", "runs2").is_within(runs)
            (True, False)
        """
        is_below = not other.prefix or f"{self.prefix}/".startswith(f"{other.prefix}/")
        return self[:2] == other[:2] and is_below

    @property
    def name(self) -> str:
        """The last part, as that of a path; the bucket's name for a bucket."""
        return self.prefix.rpartition("/")[2] or self.bucket

    def __str__(self) -> str:
        place = f"{self.scheme}://{self.bucket}"
        return f"{place}/{self.prefix}" if self.prefix else place


def is_key(key: str) -> bool:
    """Whether a key is made of plain names, separated by single slashes.

    Example:
        >>> is_key("step-1/rlsparse/delta.safetensors"), is_key("../other"), is_key("a b")
        (True, False, False)
    """
    parts = key.split("/")
    is_plain = all(_PART.fullmatch(part) and part.strip(".") for part in parts)
    return is_plain and len(key) <= MAX_KEY_BYTES


def check_key(key: str, place: str) -> None:
    """Require that a key is made of plain names.

    Args:
        key: Names separated by slashes.
        place: What the key belongs to, for errors.

    Raises:
        NotFoundError: It is not.
    """
    if not is_key(key):
        msg = (
            f"{printable(key)!r} is not a key that this package reads or writes: give names of "
            "letters, digits and . _ - = @ + , separated by single slashes"
        )
        raise NotFoundError(msg, file=place)


def parse_bucket_url(place: str | PathLike[str]) -> BucketUrl | None:
    """Parse a URL of object storage; return ``None`` if the text is not one.

    Args:
        place: The text. A path is never a URL.

    Raises:
        NotFoundError: It is a URL, and not one that this package takes. The message repeats no
            part of it that may be a secret.

    Example:
        >>> parse_bucket_url("s3://bucket/runs/qwen")
        BucketUrl(scheme='s3', bucket='bucket', prefix='runs/qwen')
        >>> parse_bucket_url("org/name")
        >>> str(parse_bucket_url("hf://buckets/org/name/runs"))
        'hf://buckets/org/name/runs'
    """
    if isinstance(place, str) and (on_hub := _HUB.fullmatch(place)):
        return _parse_hub_bucket(on_hub[1].removesuffix("/"))
    found = _URL.fullmatch(place) if isinstance(place, str) else None
    if found is None:
        return None
    scheme, rest = found[1], found[2].removesuffix("/")
    if scheme in _FOREIGN:
        msg = "is not a scheme that this package takes: give s3:// or gs://"
        raise NotFoundError(msg, file=f"{scheme}://")
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        msg = (
            "a URL is SCHEME://BUCKET/PREFIX: no credentials, port or endpoint in it; they come "
            "from the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
        )
        raise NotFoundError(msg, file=f"{scheme}://")
    url = BucketUrl(scheme, bucket)
    if "/" not in rest:
        return url
    if "?" in prefix or "#" in prefix:
        msg = "a URL of a bucket has no query and no fragment: a signed URL is not one"
        raise NotFoundError(msg, file=str(url))
    return url / prefix


def _parse_hub_bucket(rest: str) -> BucketUrl:
    found = _HUB_BUCKET.fullmatch(rest)
    if found is None or "?" in rest or "#" in rest:
        msg = "the URL of a bucket on the Hub is hf://buckets/ORG/NAME/PREFIX"
        raise NotFoundError(msg, file="hf://buckets")
    url = BucketUrl(HUB_SCHEME, found[1])
    return url / found[2] if found[2] is not None else url
