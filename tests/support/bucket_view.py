"""A bucket of the loopback server as plain HTTP shows it, without this package's own reading."""

from __future__ import annotations

import http.client
import os
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=a"
}


class BucketView:
    """Reads the objects of a bucket.

    Args:
        bucket: Name of the bucket.
        env: Environment of a client, with the endpoint.
    """

    def __init__(self, bucket: str, env: Mapping[str, str] = os.environ) -> None:
        self._bucket = bucket
        self._address = urlsplit(env["AWS_ENDPOINT_URL"]).netloc

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with a prefix."""
        found: list[str] = []
        after = ""
        while True:
            query = f"list-type=2&prefix={quote(prefix)}&start-after={quote(after)}"
            tree = ET.fromstring(self._request("GET", f"/{self._bucket}?{query}")[1])  # noqa: S314 - our server
            found += [key.text or "" for key in tree.iter(f"{_SPACE}Key")]
            if tree.findtext(f"{_SPACE}IsTruncated") != "true":
                return found
            after = found[-1]

    def get(self, key: str) -> bytes | None:
        """The bytes of an object, or ``None`` if there is none."""
        status, data = self._request("GET", f"/{self._bucket}/{quote(key)}")
        return None if status == 404 else data

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        assert self._request("PUT", f"/{self._bucket}/{quote(key)}", data)[0] == 200

    def copy(self, prefix: str, out: Path) -> None:
        """Copy the objects below a prefix into a folder, as other tools do."""
        for key in self.keys(f"{prefix}/"):
            path = out / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            data = self.get(key)
            if data is not None:
                path.write_bytes(data)

    def _request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address)
        connection.request(method, path, body, _SIGNED)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status in {200, 404}, answer.status
        return answer.status, data
