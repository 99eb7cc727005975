"""URLs of buckets: what is one, and what is refused without repeating a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsparse_store.buckets.bucket_url import BucketUrl, parse_bucket_url
from rlsparse_store.errors import NotFoundError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", BucketUrl("s3", "bucket")),
        ("s3://bucket/", BucketUrl("s3", "bucket")),
        ("s3://my-bucket.x/runs/qwen/", BucketUrl("s3", "my-bucket.x", "runs/qwen")),
        ("gs://bucket/a/.run/b=1", BucketUrl("gs", "bucket", "a/.run/b=1")),
    ],
)
def test_urls_are_read(text: str, expected: BucketUrl) -> None:
    assert parse_bucket_url(text) == expected
    assert str(expected) == text.rstrip("/")


@pytest.mark.parametrize(
    "text",
    ["", "org/name", "hf://org/name", "/home/s3://x", "./s3:/bucket", "s3:bucket", "S3://bucket"],
)
def test_other_names_are_no_urls(text: str) -> None:
    assert parse_bucket_url(text) is None
    assert parse_bucket_url(Path("s3://bucket")) is None


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///key",
        "s3://ab",
        "s3://user:canary@bucket/key",
        "s3://canary@bucket",
        "s3://bucket:9000/key",
        "s3://bucket/key?X-Amz-Signature=canary",
        "s3://bucket/key#canary",
        "s3://bucket/a//b",
        "s3://bucket//",
        "s3://bucket/../other",
        "s3://bucket/a/./b",
        "s3://bucket/a b",
        "s3://bucket/%2e%2e",
        "s3://bucket/a\n",
        "s3://bucket/" + "a" * 300,
        "s3://bucket/" + "ab/" * 400,
        "s3://..",
        "az://bucket/key",
        "s3a://bucket/key",
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        parse_bucket_url(text)
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_below_a_place() -> None:
    url = BucketUrl("s3", "bucket", "run")
    assert str(url / "step-1.0123") == "s3://bucket/run/step-1.0123"
    assert (url / "a/b").name == "b"
    assert BucketUrl("s3", "bucket").name == "bucket"
    for name in ("..", "", "a/../../b", "/a", "a/", "."):
        with pytest.raises(NotFoundError, match="not a key"):
            url / name
